// Sorts a table by a click on a column's head and hides the rows that do not hold the filter's words.
"use strict";
// A closed table would be missing on paper.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll(".ladder details:not([open])")];
  for (const one of opened) one.open = true;
});
window.addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
});
const FILTERED = 6; // rows; fewer need no filter
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = table.tHead.rows[0].cells;
  const key = (row, i) => {
    const text = row.cells[i].dataset.value ?? row.cells[i].textContent.trim();
    const number = Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text;
  };
  for (let i = 0; i < heads.length; i++) {
    const sort = () => {
      const down = heads[i].getAttribute("aria-sort") === "ascending";
      for (const head of heads) head.removeAttribute("aria-sort");
      heads[i].setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = (a, b) => {
        const [x, y] = [key(a, i), key(b, i)];
        if (typeof x === typeof y) return typeof x === "number" ? x - y : x.localeCompare(y);
        return typeof x === "number" ? -1 : 1; // numbers before words
      };
      body.append(...[...body.rows].sort((a, b) => (down ? compare(b, a) : compare(a, b))));
    };
    heads[i].tabIndex = 0;
    heads[i].addEventListener("click", sort);
    heads[i].addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  }
  const rows = [...body.rows];
  if (rows.length < FILTERED) continue;
  const input = document.createElement("input");
  const count = document.createElement("output");
  const line = document.createElement("p");
  input.type = "search";
  input.placeholder = "words that a row must hold";
  input.setAttribute("aria-label", "Filter");
  count.className = "muted";
  count.textContent = ` ${rows.length} rows`;
  line.className = "filter";
  line.append(input, count);
  table.parentElement.before(line);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = ` ${shown} of ${rows.length} rows`;
  });
}
