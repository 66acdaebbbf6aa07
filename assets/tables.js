// Two things that Panel does to a table of Tabulator's which has yet to be built, and that fail.
// A table that is drawn anew before it was built is built all the same, and then tells Panel that the new one is ready:
// a table that has been destroyed is silent here. And what changes in one that is not built is told too soon: it waits.
(() => {
  if (!window.Tabulator || window.Tabulator.prototype.miraSilent) return
  const { destroy, setData } = window.Tabulator.prototype
  window.Tabulator.prototype.miraSilent = true
  window.Tabulator.prototype.destroy = function () {
    this._create = () => {}
    destroy.call(this)
    this.externalEvents.dispatch = () => {}
  }
  window.Tabulator.prototype.setData = function (...data) {
    if (this.initialized || this.destroyed) return setData.apply(this, data)
    return new Promise((done) => this.on('tableBuilt', () => done(setData.apply(this, data))))
  }
})()
