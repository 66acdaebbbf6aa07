// Bokeh gives up a server that has not come back within half a minute, as after a restart of the machine. Whoever finds
// their page in the morning should find it as it would be: it is loaded again as soon as somebody answers.
(() => {
  if (cb_data.timeout !== null || window.miraWaits) return
  window.miraWaits = setInterval(async () => {
    try {
      const answer = await fetch(window.location.href, {method: 'HEAD', cache: 'no-store', redirect: 'manual'})
      if (answer.status < 500) window.location.reload() // 502 and the like are a proxy's
    } catch { /* not yet */ }
  }, 3000)
})()
