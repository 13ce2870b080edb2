"use strict";
// All of the page is there without this: it adds values under the pointer and sortable columns.
for (const plot of document.querySelectorAll("[data-hover]")) {
  const { names, looks, rows } = JSON.parse(plot.dataset.hover);
  const make = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
  const cursor = make("g"), line = make("line"), tip = document.createElement("div");
  cursor.setAttribute("class", "cursor");
  line.setAttribute("y1", "0");
  line.setAttribute("y2", plot.getAttribute("height"));
  tip.className = "tip";
  tip.setAttribute("aria-hidden", "true");
  const hide = () => { cursor.remove(); tip.remove(); };
  plot.parentElement.addEventListener("pointerleave", hide);
  plot.parentElement.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * 100;
    let row = rows[0];
    for (const other of rows) if (Math.abs(other[1] - at) < Math.abs(row[1] - at)) row = other;
    const [epoch, x, ...values] = row;
    line.setAttribute("x1", `${x}%`);
    line.setAttribute("x2", `${x}%`);
    const head = document.createElement("b");
    head.textContent = `epoch ${epoch}`;
    tip.replaceChildren(head);
    const dots = values.map(([text, y], index) => {
      const told = document.createElement("div");
      told.textContent = `${names[index]}: ${text}`;
      tip.append(told);
      const dot = make("circle");
      dot.setAttribute("cx", `${x}%`);
      dot.setAttribute("cy", y ?? 0);
      dot.setAttribute("r", y === null ? 0 : 4);
      const look = make("g");
      look.setAttribute("class", looks[index]);
      look.append(dot);
      return look;
    });
    cursor.replaceChildren(line, ...dots);
    plot.append(cursor);
    plot.parentElement.append(tip);
    const start = box.left - plot.parentElement.getBoundingClientRect().left;
    const place = start + (x / 100) * box.width;
    tip.style.left = `${x > 55 ? Math.max(0, place - tip.offsetWidth - 10) : place + 10}px`;
  });
}
for (const table of document.querySelectorAll("table.rows")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 3) continue;
  const value = (row, column) => row.cells[column].textContent.trim();
  const amount = (text) => parseFloat(text.replace(/[,%]/g, ""));
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const isUp = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      const sorted = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        const [m, n] = [amount(x), amount(y)];
        // What is missing stands last, whichever way is sorted.
        if (head.classList.contains("n") && (isNaN(m) || isNaN(n))) return isNaN(m) - isNaN(n);
        const order = head.classList.contains("n") ? m - n
          : x.localeCompare(y, undefined, { numeric: true });
        return isUp ? order : -order;
      });
      body.append(...sorted);
    });
  });
}
