// Values under the pointer. The charts are complete without it; text goes in as text, never as markup.
"use strict";
for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const tip = document.getElementById("tip");
  const [left, , right] = data.frame;
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle; else high = middle;
    }
    return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
  };
  const show = (value) => String(Number(value.toPrecision(5)));
  const hide = () => { cursor.setAttribute("visibility", "hidden"); tip.hidden = true; };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const share = Math.min(1, Math.max(0, (place - left) / (right - left)));
    const x = data.x[0] + share * (data.x[1] - data.x[0]);
    const hits = data.series.map((line) => ({ line, point: nearest(line.points, x) }));
    const at = hits.map((hit) => hit.point[0]).reduce((a, b) => Math.abs(a - x) <= Math.abs(b - x) ? a : b);
    cursor.setAttribute("visibility", "visible");
    const across = left + (at - data.x[0]) / (data.x[1] - data.x[0]) * (right - left);
    cursor.setAttribute("transform", `translate(${across},0)`);
    tip.replaceChildren();
    const head = document.createElement("b");
    head.textContent = `${data.x_name} ${show(at)}`;
    tip.append(head);
    for (const { line, point } of hits) {
      const row = document.createElement("div");
      const mark = document.createElement("span");
      mark.className = `c${line.color}`;
      mark.textContent = "● ";
      const late = point[0] === at ? "" : ` (${data.x_name} ${show(point[0])})`;
      row.append(mark, `${line.name}: ${show(point[1])}${late}`);
      tip.append(row);
    }
    tip.hidden = false;
    const width = tip.offsetWidth;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 4))}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4)}px`;
  });
}
