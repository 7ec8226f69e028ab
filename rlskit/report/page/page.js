"use strict";
(() => {
  const data = JSON.parse(document.getElementById("pictures").textContent);
  const grid = document.getElementById("grid");
  if (!grid) return;
  const PAGE = 60;
  const STATES = { broken: "broken", held: "held", wrong: "wrong before the attack" };
  const KINDS = [["clean", "before"], ["adversarial", "attacked"], ["difference", "difference"]];
  const control = (name) => document.getElementById("pick-" + name);
  const text = (tag, words, className) => {
    const element = document.createElement(tag);
    element.textContent = words;
    if (className) element.className = className;
    return element;
  };
  const named = (label) =>
    label === null ? "not scored" : label in data.names && data.names[label] !== String(label)
      ? `${data.names[label]} (${label})` : String(label);
  const sheetOf = (image) => data.sheets[image.sheet];

  const fill = (select, values, said) => {
    for (const value of values) select.append(new Option(said(value), value));
  };
  const different = (list) => [...new Set(list)];
  fill(control("row"), different(data.sheets.map((sheet) => sheet.row)), String);
  fill(control("attack"), different(data.sheets.map((sheet) => sheet.attack)), String);
  fill(control("class"), different(data.images.map((image) => image.label)).sort((a, b) => a - b), named);
  for (const option of [...control("sort").options])
    if (option.value !== "index" && option.value !== "class" &&
        !data.images.some((image) => option.value in image)) option.remove();

  const draw = (image, kind, words) => {
    const sheet = sheetOf(image);
    const canvas = document.createElement("canvas");
    canvas.width = sheet.width;
    canvas.height = sheet.height;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", sheet[kind] === null ? `${words}: not at hand` : words);
    if (sheet[kind] === null) return canvas;
    const picture = document.getElementById("picture-" + sheet[kind]);
    const x = (image.place % sheet.columns) * sheet.width;
    const y = Math.floor(image.place / sheet.columns) * sheet.height;
    const paint = () => canvas.getContext("2d")
      .drawImage(picture, x, y, sheet.width, sheet.height, 0, 0, sheet.width, sheet.height);
    picture.decode().then(paint, () => {});
    return canvas;
  };
  const three = (image) => {
    const found = document.createElement("div");
    found.className = "three";
    for (const [kind, words] of KINDS)
      if (kind === "adversarial" || sheetOf(image)[kind] !== null) found.append(draw(image, kind, words));
    return found;
  };
  const said = (image) => {
    const label = text("span", `${named(image.label)} → ${named(image.robust)}, `, "label " + image.state);
    label.append(text("b", STATES[image.state]));
    return label;
  };

  const chosen = () => {
    const [row, attack, label, state, sort, order] =
      ["row", "attack", "class", "state", "sort", "order"].map((name) => control(name).value);
    const found = data.images.filter((image) =>
      (row === "" || sheetOf(image).row === row) &&
      (attack === "" || sheetOf(image).attack === attack) &&
      (label === "" || String(image.label) === label) &&
      (state === "" || image.state === state));
    const key = (image) => (sort === "class" ? image.label : image[sort] ?? Infinity);
    const sign = order === "down" ? -1 : 1;
    return found.sort((a, b) => sign * (key(a) - key(b)) || a.index - b.index || a.sheet - b.sheet);
  };

  let found = [];
  let shown = 0;
  const more = document.getElementById("more");
  const show = () => {
    const next = found.slice(shown, shown + PAGE);
    for (const [offset, image] of next.entries()) {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.index = image.index;
      button.dataset.state = image.state;
      button.append(three(image), said(image));
      if (data.sheets.length > 1)
        button.append(text("span", `${sheetOf(image).row}; ${sheetOf(image).attack}`, "whose"));
      const place = shown + offset;
      button.addEventListener("click", () => open(place));
      item.append(button);
      grid.append(item);
    }
    shown += next.length;
    more.hidden = shown >= found.length;
    document.getElementById("count").textContent =
      `${found.length} of ${data.images.length} images; ${shown} shown`;
  };
  const refresh = () => {
    found = chosen();
    shown = 0;
    grid.replaceChildren();
    show();
  };

  const view = document.getElementById("view");
  let current = 0;
  const open = (place) => {
    current = Math.max(0, Math.min(found.length - 1, place));
    const image = found[current];
    const sheet = sheetOf(image);
    const pictures = document.createElement("div");
    pictures.className = "three";
    for (const [kind, words] of KINDS) {
      if (kind !== "adversarial" && sheet[kind] === null) continue;
      const frame = document.createElement("div");
      const factor = kind === "difference" && image.factor ? `, ${image.factor} times as large` : "";
      frame.append(draw(image, kind, words), text("span", words + factor, "label"));
      pictures.append(frame);
    }
    const facts = document.createElement("dl");
    const fact = (name, value) => {
      if (value !== undefined && value !== null) facts.append(text("dt", name), text("dd", String(value)));
    };
    const share = (value) => (value === undefined ? value : `${Math.round(1000 * value) / 10} %`);
    fact("image", image.path === undefined ? image.index : `${image.index}, ${image.path}`);
    fact("model", sheet.row);
    fact("attack", sheet.attack);
    fact("label", named(image.label));
    fact("answer before", image.clean === null ? null : named(image.clean));
    fact("answer attacked", named(image.robust));
    fact("outcome", STATES[image.state]);
    fact("single draws right, before", share(image.clean_gibbs));
    fact("single draws right, attacked", share(image.robust_gibbs));
    for (const [name, words] of [["linf", "distance, linf"], ["l2", "distance, l2"], ["l1", "distance, l1"], ["l0", "values changed, l0"]])
      fact(words, image[name]);
    document.getElementById("seen").replaceChildren(pictures, facts);
    if (!view.open) view.showModal();
  };
  document.getElementById("before").addEventListener("click", () => open(current - 1));
  document.getElementById("after").addEventListener("click", () => open(current + 1));
  document.getElementById("close").addEventListener("click", () => view.close());
  view.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") open(current - 1);
    if (event.key === "ArrowRight") open(current + 1);
  });
  more.addEventListener("click", show);
  for (const name of ["row", "attack", "class", "state", "sort", "order"])
    control(name).addEventListener("change", refresh);
  for (const name of ["row", "attack"])
    if (control(name).options.length < 3) control(name).parentElement.hidden = true;
  refresh();
})();
