"use strict";
// Sorting: the heads of a table become buttons; each body of rows (a section) is sorted by itself, empty cells last.
const valueOf = (row, place) => {
  const cell = row.cells[place];
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = Number.parseFloat(text);
  return cell.tagName === "TD" && !cell.classList.contains("words") ? number : text;
};
const compare = (a, b, sign) => {
  if (typeof a === "number") {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  }
  return sign * a.localeCompare(b, undefined, { numeric: true });
};
const sortBy = (table, head, place) => {
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => row.cells.length > place && row.cells.length > 1);
    rows.sort((a, b) => compare(valueOf(a, place), valueOf(b, place), sign));
    body.append(...rows);
  }
};
for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows].at(-1).querySelectorAll("th").forEach((head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(table, head, head.cellIndex));
  });
}
// Commands: a number shows the command that gives it at the foot of the page.
const shelf = document.getElementById("command");
const chosen = document.getElementById("chosen");
let from = null;
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-command]");
  if (!link) return;
  event.preventDefault();
  from = link;
  shelf.hidden = false;
  chosen.textContent = link.dataset.command;
});
const close = () => {
  shelf.hidden = true;
  from?.focus();
};
document.getElementById("close").addEventListener("click", close);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !shelf.hidden) close();
});
// Copying: where the browser allows no clipboard (a page opened from a file), the text is selected instead.
const copy = async (button, text, code) => {
  try {
    await navigator.clipboard.writeText(text);
    button.firstChild.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    button.firstChild.textContent = "Selected";
  }
};
for (const button of document.querySelectorAll("button.copy")) {
  const code = button.parentElement.querySelector("code");
  button.addEventListener("click", () => copy(button, button.dataset.copy ?? code.textContent, code));
}
