(() => {
  // Whose conversations are shown: a secret of this browser, which all its tabs have in common and no other knows.
  const NAME = "sparkles-visitor";
  const made = btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(32))));
  const fresh = made.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  try {
    localStorage[NAME] ??= fresh;
    return localStorage[NAME];
  } catch {
    return (window[NAME] ??= fresh); // this page alone: the browser keeps nothing
  }
})()
