(() => {
  "use strict";
  const root = document.documentElement;

  // Theme: as the system, light, dark.
  const theme = document.querySelector(".theme");
  if (theme) {
    const names = ["auto", "light", "dark"];
    const read = () => { try { return localStorage.getItem("veil-theme"); } catch { return null; } };
    const keep = (name) => { try { localStorage.setItem("veil-theme", name); } catch { /* a file may keep nothing */ } };
    const show = (name) => {
      if (name === "auto") root.removeAttribute("data-theme"); else root.setAttribute("data-theme", name);
      theme.textContent = `${theme.dataset.label}: ${theme.dataset[name]}`;
      theme.dataset.now = name;
    };
    show(names.includes(read()) ? read() : "auto");
    theme.hidden = false;
    theme.addEventListener("click", () => {
      const next = names[(names.indexOf(theme.dataset.now) + 1) % names.length];
      show(next);
      keep(next);
    });
  }

  // Charts: pointer or arrow keys read the values.
  for (const plot of document.querySelectorAll(".plot[data-texts]")) {
    const texts = JSON.parse(plot.dataset.texts);
    if (!texts.length) continue;
    const make = (name) => {
      const part = document.createElement("div");
      part.className = name;
      part.hidden = true;
      plot.append(part);
      return part;
    };
    const [cursor, dot, tip] = [make("cursor"), make("dot"), make("tip")];
    const drawing = () => [...plot.querySelectorAll("svg")].find((svg) => svg.getBoundingClientRect().width > 0);
    const places = (svg, name) => svg.dataset[name].split(" ").map(Number);
    let at = texts.length - 1;
    const show = (index) => {
      at = Math.max(0, Math.min(texts.length - 1, index));
      const svg = drawing();
      const box = svg.getBoundingClientRect();
      const outer = plot.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      const x = box.left - outer.left + places(svg, "x")[at] * scale;
      const y = box.top - outer.top + places(svg, "y")[at] * scale;
      for (const part of [cursor, dot, tip]) part.hidden = false;
      cursor.style.left = `${x}px`;
      cursor.style.top = `${30 * scale}px`;
      cursor.style.height = `${box.height - 74 * scale}px`;
      dot.style.left = `${x}px`;
      dot.style.top = `${y}px`;
      tip.textContent = texts[at];
      tip.style.left = `${Math.max(0, Math.min(outer.width - tip.offsetWidth, x - tip.offsetWidth / 2))}px`;
      plot.setAttribute("aria-valuenow", String(at + 1));
      plot.setAttribute("aria-valuetext", texts[at]);
    };
    const hide = () => { for (const part of [cursor, dot, tip]) part.hidden = true; };
    plot.tabIndex = 0;
    plot.setAttribute("role", "slider");
    plot.setAttribute("aria-label", plot.querySelector("svg").getAttribute("aria-label"));
    plot.setAttribute("aria-valuemin", "1");
    plot.setAttribute("aria-valuemax", String(texts.length));
    plot.setAttribute("aria-valuenow", String(at + 1));
    plot.setAttribute("aria-valuetext", texts[at]);
    plot.addEventListener("pointermove", (event) => {
      const svg = drawing();
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      const gaps = places(svg, "x").map((place) => Math.abs(place - x));
      show(gaps.indexOf(Math.min(...gaps)));
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("focus", () => show(at));
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
      const place = { Home: 0, End: texts.length - 1 }[event.key] ?? (step === undefined ? undefined : at + step);
      if (place === undefined) return;
      event.preventDefault();
      show(place);
    });
  }

  // What does not scroll need not be a stop for the keyboard.
  const stops = () => {
    for (const part of document.querySelectorAll(".scroll")) {
      if (part.scrollWidth > part.clientWidth) part.tabIndex = 0; else part.removeAttribute("tabindex");
    }
  };
  stops();
  window.addEventListener("resize", stops);

  // Tables: sort by a column; find and fold rows.
  const FOLDED = 25;
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const tools = document.getElementById(table.dataset.tools ?? "");
    let open = rows.length <= FOLDED * 1.6 || !table.dataset.more;
    const more = document.createElement("button");
    more.type = "button";
    more.className = "plain more only-screen";
    more.textContent = table.dataset.more;
    more.addEventListener("click", () => { open = true; fold(); });
    (table.closest(".scroll") ?? table).after(more);
    const parts = tools && {
      find: tools.querySelector("input"), show: tools.querySelector("select"), count: tools.querySelector("output"),
    };
    const fold = () => {
      const wanted = parts ? parts.find.value.trim().toLowerCase() : "";
      const kind = parts ? parts.show.value : "all";
      const matching = [...body.rows].filter((row) =>
        row.cells[0].textContent.toLowerCase().includes(wanted) && (kind === "all" || (row.dataset.kinds ?? "").split(" ").includes(kind)));
      const shown = new Set(open || wanted || kind !== "all" ? matching : matching.slice(0, FOLDED));
      for (const row of rows) row.classList.toggle("folded", !shown.has(row));
      if (parts) {
        parts.count.textContent = matching.length
          ? tools.dataset.matching.replace("#s", shown.size.toLocaleString(root.lang)).replace("#n", rows.length.toLocaleString(root.lang)) : tools.dataset.none;
      }
      more.hidden = open || shown.size === matching.length;
    };
    heads.forEach((head, column) => {
      if (head.dataset.sort === undefined) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === (head.dataset.sort === "text" ? "ascending" : "descending");
        const up = head.dataset.sort === "text" ? !down : down;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => {
          const cell = row.cells[column];
          return head.dataset.sort === "text" ? cell.textContent.trim() : Number(cell.dataset.v ?? cell.textContent);
        };
        const compare = head.dataset.sort === "text"
          ? (a, b) => a.localeCompare(b, undefined, { numeric: true })
          : (a, b) => (a === b ? 0 : a - b);
        const sorted = [...rows].sort((a, b) => (up ? 1 : -1) * compare(value(a), value(b)));
        body.append(...sorted);
        fold();
      });
    });
    if (parts) {
      parts.find.addEventListener("input", fold);
      parts.show.addEventListener("change", fold);
      tools.hidden = rows.length < 12;
    }
    fold();
  }
})();
