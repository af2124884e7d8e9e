"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = { displayModeBar: false, responsive: true };

  // Charts: made in the light colors; in the dark each has another in its place.
  const colored = (value) => {
    if (Array.isArray(value)) return value.map(colored);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, colored(one)]));
    }
    return (dark.matches && typeof value === "string" && data.dark[value]) || value;
  };
  const shownCharts = new Map();
  const draw = (id, figure) => {
    shownCharts.set(id, figure);
    const { data: traces, layout } = colored(figure);
    Plotly.react(id, traces, { ...layout, ...fitted(id, layout) }, still);
  };
  // On a phone a legend takes a line for each of its words, above the chart.
  const fitted = (id, layout) => {
    const narrow = byId(id).clientWidth < 560;
    const rows = narrow ? figureRows(id) : 1;
    return narrow
      ? {
          height: layout.height + 22 * (rows - 1),
          margin: { ...layout.margin, r: 8, t: 34 + 22 * rows },
          xaxis: thinned(layout.xaxis),
        }
      : {};
  };
  const thinned = (axis) => {
    const { tickvals, ticktext } = axis;
    if (!tickvals || tickvals.length <= 8) return axis;
    const kept = (_, index) => (tickvals.length - 1 - index) % 2 === 0; // the last one among them
    return { ...axis, tickvals: tickvals.filter(kept), ticktext: ticktext.filter(kept) };
  };
  const figureRows = (id) => shownCharts.get(id).data.length;
  for (const [id, figure] of Object.entries(data.charts)) draw(id, figure);

  const scale = byId("stage-scale");
  scale?.addEventListener("change", () => {
    const figure = structuredClone(data.charts.stages);
    if (scale.value) {
      figure.layout.barnorm = scale.value;
      figure.layout.xaxis.title = { text: "share of the time of one image, %" };
      for (const trace of figure.data) trace.hovertemplate = trace.hovertemplate.replace(" ms<", " %<");
    }
    draw("stages", figure);
  });

  const which = byId("history-level");
  const drawHistory = () => draw("history", data.histories[Number(which.value)].figure);
  if (which) {
    which.addEventListener("change", drawHistory);
    drawHistory();
  }
  dark.addEventListener("change", () => shownCharts.forEach((figure, id) => draw(id, figure)));

  // Tables: a button in each heading, which says how its column is sorted.
  const compared = (one, other) => {
    const [a, b] = [Number(one), Number(other)];
    return Number.isNaN(a) || Number.isNaN(b) ? one.localeCompare(other) : a - b;
  };
  const sort = (table, heading, column) => {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.key;
    const rows = [...table.tBodies[0].rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === "" || b === "") return (a === "") - (b === ""); // what has no value stays last
      return descending ? compared(b, a) : compared(a, b);
    });
    table.tBodies[0].append(...rows);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => sort(table, heading, column));
    });
  }

  // Images: the level's over its reference's, cut off at the slider.
  const pairs = data.images.pairs;
  if (pairs.length) {
    const [level, prompt, slider, stack] = ["pair-level", "pair-prompt", "slider", "stack"].map(byId);
    const names = (which, of) => [...new Set(of.map((pair) => pair[which]))];
    const fill = (select, values, wanted) => {
      select.replaceChildren(...values.map((value) => new Option(value, value)));
      if (values.includes(wanted)) select.value = wanted;
    };
    const show = () => {
      const own = pairs.filter((pair) => pair.level === level.value);
      fill(prompt, names("prompt", own), prompt.value);
      const pair = own.find((one) => one.prompt === prompt.value);
      const source = (id, index, words) => {
        byId(id).src = data.images.uris[index];
        byId(id).alt = words;
      };
      source("image-own", pair.image, `${pair.prompt} by ${pair.level}`);
      source("image-other", pair.other, `${pair.prompt} by ${pair.reference}`);
      source("image-difference", pair.difference, `difference of ${pair.level} and ${pair.reference}`);
      byId("name-own").textContent = `← ${pair.level}`;
      byId("name-other").textContent = `${pair.reference} →`;
      byId("pair-words").textContent = `${pair.words}.`;
    };
    const move = () => {
      stack.style.setProperty("--at", `${slider.value}%`);
      slider.setAttribute("aria-valuetext", `${slider.value} % ${level.value}`);
    };
    const follow = (event) => {
      const box = stack.getBoundingClientRect();
      slider.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
      move();
    };
    stack.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      stack.setPointerCapture(event.pointerId);
      follow(event);
    });
    stack.addEventListener("pointermove", (event) => event.buttons && follow(event));
    slider.addEventListener("input", move);
    level.addEventListener("change", () => (show(), move()));
    prompt.addEventListener("change", show);
    fill(level, names("level", pairs), pairs.at(-1).level);
    show();
    move();
  }
  document.documentElement.dataset.ready = "yes";
})();
