// The URL holds what is looked at, so a page that has lost its server or a piece of itself is loaded again.
(() => {
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms))
  const answers = async () => {
    try {
      const answer = await fetch(window.location.href, { method: 'HEAD', cache: 'no-store', redirect: 'manual' })
      return answer.status < 500 // 502 and the like are a proxy's
    } catch { return false }
  }

  // As soon as somebody answers: whoever finds their page in the morning should find it as it would be. Loading can come
  // to nothing, as where something else was about to be loaded; Bokeh, once told of it, does not connect any more. So
  // who is still here tries again.
  window.miraReload = async () => {
    if (window.miraWaits) return
    window.miraWaits = true
    for (let wait = 15000; ; wait *= 2) {
      while (!(await answers())) await sleep(3000)
      window.location.reload()
      await sleep(wait)
    }
  }

  // A browser that has missed a piece of the page gets no further changes of it: what was live stands still. Not more
  // often than every ten seconds, should to load it again not help.
  const KEY = 'mira-recovered'
  const lost = (text) => /reference p?\w+ isn't known/.test(String(text))
  const recover = (text) => {
    if (!lost(text) || Date.now() - Number(sessionStorage.getItem(KEY) ?? 0) < 10000) return
    sessionStorage.setItem(KEY, String(Date.now()))
    window.miraReload()
  }
  window.addEventListener('error', (event) => recover(event.message))
  window.addEventListener('unhandledrejection', (event) => recover(event.reason?.message ?? event.reason))
})()
