// Names and roles that the widgets' libraries leave out, for those who hear the page rather than see it.
// Widgets live in shadow roots, so each root is watched, also those that are yet to come.
(() => {
  if (window.miraAccessible) return
  window.miraAccessible = true

  const set = (element, name, value) => { if (element.getAttribute(name) !== value) element.setAttribute(name, value) }
  const named = (e) => e.innerText?.trim() || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')

  const mend = (root) => {
    for (const bar of root.querySelectorAll('[role=progressbar]:not([aria-label])')) set(bar, 'aria-label', 'Progress')
    for (const help of root.querySelectorAll('span[aria-label]:not([role])')) set(help, 'role', 'img')
    for (const button of root.querySelectorAll('.MuiInputAdornment-root button'))
      if (!named(button)) set(button, 'aria-label', button.closest('.MuiInputAdornment-positionStart') ? 'Less' : 'More')
    for (const table of root.querySelectorAll('.tabulator')) {
      // What scrolls takes the focus, so it must be a part that a grid may have.
      const held = table.querySelector('.tabulator-tableholder')
      if (held) set(held, 'role', 'rowgroup')
      const rows = table.querySelector('.tabulator-table')
      if (rows) set(rows, 'role', 'presentation')
      // Buttons to turn pages may stand in a grid's cell only.
      const footer = table.querySelector('.tabulator-footer')
      if (footer) set(footer, 'role', 'row')
      const contents = table.querySelector('.tabulator-footer-contents')
      if (contents) set(contents, 'role', 'gridcell')
      for (const input of table.querySelectorAll('.tabulator-header-filter input')) {
        const column = input.closest('.tabulator-col')?.querySelector('.tabulator-col-title')?.textContent.trim()
        set(input, 'aria-label', `Filter ${column ?? ''}`.trim())
      }
    }
  }

  const watch = (root) => {
    let due = false
    const soon = () => {
      if (due) return
      due = true
      setTimeout(() => { due = false; mend(root) }, 200)
    }
    new MutationObserver(soon).observe(root, { childList: true, subtree: true })
    soon()
    for (const element of root.querySelectorAll('*')) if (element.shadowRoot) watch(element.shadowRoot)
  }

  const attach = Element.prototype.attachShadow
  Element.prototype.attachShadow = function (options) {
    const root = attach.call(this, options)
    watch(root)
    return root
  }
  watch(document)
})()
