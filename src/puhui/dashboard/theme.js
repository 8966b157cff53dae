/** Before anything is drawn: the colours that were chosen here, so that the page does not flash in others. */
try {
  const chosen = localStorage.getItem("puhui-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // storage is turned off: the system's choice holds
}
