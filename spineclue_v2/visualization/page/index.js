"use strict";
// Filters and order of the cases. Without it all of them are there, those in doubt first.
(() => {
  const form = document.getElementById("filters"), list = document.getElementById("cards"), cards = [...list.children];
  const fits = (card, wanted) => {
    const { name, flags, regions, anchored, review } = card.dataset;
    if (wanted.text && !name.toLowerCase().includes(wanted.text.toLowerCase())) return false;
    if (wanted.flag === "-" ? flags : wanted.flag && !flags.split(" ").includes(wanted.flag)) return false;
    if (wanted.region && !regions.split(" ").includes(wanted.region)) return false;
    return !(wanted.anchored && wanted.anchored !== anchored) && !(wanted.review && !review);
  };
  let order = "doubt";
  function apply() {
    const wanted = Object.fromEntries(new FormData(form));
    let shown = 0;
    for (const card of cards) {
      card.hidden = !fits(card, wanted);
      shown += !card.hidden;
    }
    if (wanted.order !== order) {
      order = wanted.order;
      list.append(...(order === "doubt" ? cards : [...cards].sort((a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }))));
    }
    document.getElementById("shown").textContent = `${shown} of ${cards.length}`;
    document.getElementById("nothing").hidden = shown > 0 || !cards.length;
  }
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
})();
