// Mends tables of Tabulator's. First, two things that Panel does to a table which has yet to be built, and that fail.
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

  // Second, no click comes of a press whose row is drawn anew or moves away before the button is let go, as
  // in a table that changes each second. It is a click on the row that was pressed.
  const rowsOf = (table) => [...table.querySelectorAll('.tabulator-row')]
  let pressed = null
  document.addEventListener('mousedown', (event) => {
    const [part] = event.composedPath()
    const row = part instanceof Element && event.button === 0 && part.closest('.tabulator-row')
    const table = row && row.closest('.tabulator')
    pressed = row && { part, row, table, at: rowsOf(table).indexOf(row), x: event.clientX, y: event.clientY }
  }, true)
  document.addEventListener('mouseup', (event) => {
    if (!pressed) return
    const { part, row, table, at, x, y } = pressed
    const [released] = event.composedPath()
    pressed = null
    if (part.isConnected && row.contains(released)) return  // the browser makes it a click
    if (Math.hypot(event.clientX - x, event.clientY - y) > 5) return  // somebody selects text, or thought better of it
    const now = row.isConnected ? row : rowsOf(table)[at]  // of which the cells may be new, too
    const on = part.isConnected ? part : now?.contains(released) ? released : now
    const { ctrlKey, shiftKey, metaKey } = event
    on?.dispatchEvent(new MouseEvent('click', { bubbles: true, composed: true, ctrlKey, shiftKey, metaKey }))
  }, true)
})()
