// In the graph of chapters: point at a chapter, or focus its link, and what it needs lights up, through all steps.
document.querySelectorAll(".chapter-graph").forEach((graph) => {
  const rows = new Map();
  graph.querySelectorAll("g.chapter").forEach((row) => rows.set(row.dataset.chapter, row));

  function ancestors(number, found = new Set()) {
    if (!found.has(number)) {
      found.add(number);
      rows.get(number).dataset.needs.split(" ").filter(Boolean).forEach((need) => ancestors(need, found));
    }
    return found;
  }

  function show(number) {
    const lit = ancestors(number);
    graph.classList.add("lit");
    rows.forEach((row, name) => row.classList.toggle("on", lit.has(name)));
    graph.querySelectorAll("path.arc").forEach((arc) => arc.classList.toggle("on", lit.has(arc.dataset.to)));
  }

  const clear = () => graph.classList.remove("lit");
  rows.forEach((row, number) => {
    row.addEventListener("mouseenter", () => show(number));
    row.addEventListener("focusin", () => show(number));
    row.addEventListener("focusout", clear);
  });
  graph.addEventListener("mouseleave", clear);
});
