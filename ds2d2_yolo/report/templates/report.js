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
      const value = (row) => row.cells[column].dataset.value;
      const known = [...body.rows].filter((row) => value(row) !== "");
      const unknown = [...body.rows].filter((row) => value(row) === "");
      const numbers = known.every((row) => row.cells[column].tagName !== "TH" && !Number.isNaN(Number(value(row))));
      // Largest number first, but names from A on; another click turns it round
      const [first, other] = numbers ? ["descending", "ascending"] : ["ascending", "descending"];
      const order = th.getAttribute("aria-sort") === first ? other : first;
      for (const sorted of table.querySelectorAll("th[aria-sort]")) sorted.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", order);
      known.sort((a, b) =>
        numbers ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b), undefined, { numeric: true }),
      );
      if (order === "descending") known.reverse();
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
