for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.hasAttribute("data-sort")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const key = (row) => row.cells[column].textContent.trim().replaceAll(",", "");
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => key(a).localeCompare(key(b), "en", { numeric: true }) * (up ? 1 : -1);
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
}
for (const button of document.querySelectorAll("button[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  button.addEventListener("click", () => {
    const said = (words) => { button.textContent = words; };
    const marked = () => { getSelection().selectAllChildren(source); said("Marked: copy it with the keyboard"); };
    if (!navigator.clipboard) return marked();
    navigator.clipboard.writeText(source.textContent).then(() => said("Copied"), marked);
  });
}
