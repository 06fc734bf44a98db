"use strict";
// Tables sort by a click on a heading. Without scripts they are read in the order of the report.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((th, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...th.childNodes);
    th.append(button);
    button.addEventListener("click", () => {
      const down = th.getAttribute("aria-sort") !== "descending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const known = [...body.rows].filter((row) => value(row) !== "");
      const unknown = [...body.rows].filter((row) => value(row) === "");
      const numbers = known.every((row) => row.cells[column].tagName !== "TH" && !Number.isNaN(Number(value(row))));
      known.sort((a, b) =>
        numbers ? Number(value(a)) - Number(value(b)) : value(b).localeCompare(value(a), undefined, { numeric: true }),
      );
      if (down) known.reverse();
      body.append(...known, ...unknown);
    });
  });
}
for (const panels of document.querySelectorAll(".panels")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "larger";
  button.textContent = "Larger pictures";
  button.addEventListener("click", () => {
    button.textContent = panels.classList.toggle("large") ? "Side by side" : "Larger pictures";
  });
  panels.after(button);
}
// What is folded away on the screen belongs on paper.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
