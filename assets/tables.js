// A table of Tabulator's that is drawn anew before it was built is built all the same, and then tells Panel that the new
// one is ready, which is not: what comes next fails. A table that has been destroyed is silent here.
(() => {
  if (!window.Tabulator || window.Tabulator.prototype.miraSilent) return
  const { destroy } = window.Tabulator.prototype
  window.Tabulator.prototype.miraSilent = true
  window.Tabulator.prototype.destroy = function () {
    this._create = () => {}
    destroy.call(this)
    this.externalEvents.dispatch = () => {}
  }
})()
