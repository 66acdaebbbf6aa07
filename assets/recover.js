// A browser that has missed a piece of the page gets no further changes of it: what was live stands still. The URL
// holds what is looked at, so the page is loaded again; not more often than every ten seconds, should that not help.
(() => {
  const KEY = 'mira-recovered'
  const lost = (text) => /reference p?\w+ isn't known/.test(String(text))
  const recover = (text) => {
    if (!lost(text) || Date.now() - Number(sessionStorage.getItem(KEY) ?? 0) < 10000) return
    sessionStorage.setItem(KEY, String(Date.now()))
    window.location.reload()
  }
  window.addEventListener('error', (event) => recover(event.message))
  window.addEventListener('unhandledrejection', (event) => recover(event.reason?.message ?? event.reason))
})()
