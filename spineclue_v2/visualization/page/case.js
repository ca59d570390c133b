"use strict";
// The views of a case's page. Without WebGL 2 nothing here runs, and the picture and the tables stay as they are.
(async () => {
  const element = (id) => document.getElementById(id);
  const settingsText = element("settings");
  if (!settingsText) return;
  const fail = (reason) => {
    element("viewer").hidden = true;
    if (element("picture")) element("picture").hidden = false;
    element("trouble").hidden = false;
    if (reason) console.warn(reason);
  };
  if (!document.createElement("canvas").getContext("webgl2") || typeof DecompressionStream === "undefined") return fail();

  const settings = JSON.parse(settingsText.textContent);
  const items = settings.items;
  const SAGITTAL = 2, CORONAL = 1, AXIAL = 0;
  const AXIS = { [SAGITTAL]: 0, [CORONAL]: 1, [AXIAL]: 2 };       // plane -> index axis that it moves along (RAS)

  async function unpack(id) {
    const coded = atob(element(id).textContent.trim());
    element(id).remove();
    const bytes = Uint8Array.from(coded, (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  }

  async function loadViewer() {
    const url = URL.createObjectURL(new Blob([await unpack("viewer-code")], { type: "text/javascript" }));
    await new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = url;
      script.onload = done;
      script.onerror = () => failed(new Error("the viewer did not load"));
      document.head.append(script);
    });
    URL.revokeObjectURL(url);
  }

  const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

  try {
    await loadViewer();
  } catch (error) {
    return fail(error);
  }
  const { Niivue, NVImage, NVMesh, DRAG_MODE, SLICE_TYPE } = globalThis.niivue;
  const panes = element("panes");
  element("viewer").hidden = false;
  if (element("picture")) element("picture").classList.add("beside");

  // --- the three planes: one canvas behind the panes
  const mouse = { leftButton: { primary: DRAG_MODE.crosshair, withCtrl: DRAG_MODE.windowing }, rightButton: DRAG_MODE.pan, centerButton: DRAG_MODE.pan };
  const plain = { logLevel: "error", dragAndDropEnabled: false, loadingText: "", viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
    fontMinPx: 11, scrollRequiresFocus: false };
  const nv = new Niivue({ ...plain, backColor: [0.024, 0.031, 0.043, 1], isRadiologicalConvention: true, sagittalNoseLeft: true,
    crosshairColor: [1, 1, 1, 0.55], crosshairWidth: 0.45, crosshairWidthUnit: "mm", crosshairGap: 12, isCornerOrientationText: false, fontColor: [0.75, 0.8, 0.87, 1],
    mouseEventConfig: mouse, isOrientationTextVisible: true, showAllOrientationMarkers: true, trustCalMinMax: true });
  await nv.attachToCanvas(element("slices"));
  const scan = await NVImage.loadFromUrl({ url: await unpack("scan-data"), name: "scan.nii", colormap: "gray" });
  const labels = await NVImage.loadFromUrl({ url: await unpack("labels-data"), name: "labels.nii", opacity: 0.45 });
  const numbers = items.map((item) => item.number);
  const count = Math.max(0, ...numbers);
  const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
  for (let number = 1; number <= count; number++) {
    const item = items[numbers.indexOf(number)];
    const [red, green, blue] = item ? rgb(item.colour) : [178, 178, 178];
    table.R.push(red); table.G.push(green); table.B.push(blue); table.A.push(255); table.I.push(number); table.labels.push(item ? item.name : "");
  }
  labels.setColormapLabel(table);
  nv.addVolume(scan);
  nv.addVolume(labels);
  nv.setInterpolation(false);
  const dims = scan.dimsRAS.slice(1, 4);
  const at = (voxel) => voxel[0] + dims[0] * (voxel[1] + dims[1] * voxel[2]);
  const HEAD = 34;

  function layOut() {
    const whole = panes.getBoundingClientRect();
    const tiles = [...panes.querySelectorAll(".pane[data-plane]")].map((pane) => {
      const box = pane.getBoundingClientRect();
      const top = box.top - whole.top + HEAD, height = Math.max(10, box.height - HEAD);
      return { sliceType: Number(pane.dataset.plane), position: [(box.left - whole.left) / whole.width, top / whole.height,
        Math.min(box.width / whole.width, 1 - (box.left - whole.left) / whole.width), Math.min(height / whole.height, 1 - top / whole.height)] };
    });
    nv.setCustomLayout(tiles);
    nv.drawScene();
    drawNames();
  }

  // --- where we are
  const voxelOf = () => Array.from(nv.scene.crosshairPos, (f, axis) => Math.max(0, Math.min(dims[axis] - 1, Math.floor(f * dims[axis]))));
  function moveTo(voxel) {
    nv.scene.crosshairPos = voxel.map((value, axis) => (Math.max(0, Math.min(dims[axis] - 1, value)) + 0.5) / dims[axis]);
    nv.drawScene();
    nv.createOnLocationChange();
  }
  function step(axis, by) {
    const voxel = voxelOf();
    voxel[axis] += by;
    moveTo(voxel);
  }
  const centres = items.map((item) => item.centre ? Array.from(scan.mm2vox(item.centre, true)) : centroid(item.number));

  function centroid(number) {
    const sum = [0, 0, 0];
    let found = 0;
    for (let z = 0, i = 0; z < dims[2]; z++) for (let y = 0; y < dims[1]; y++) for (let x = 0; x < dims[0]; x++, i++) {
      if (labels.img[i] === number) { sum[0] += x; sum[1] += y; sum[2] += z; found++; }
    }
    return found ? sum.map((value) => value / found) : dims.map((n) => n / 2);
  }

  let chosen = -1;
  function choose(index, move = true) {
    chosen = index;
    document.querySelectorAll("tr[data-item]").forEach((row) => row.classList.toggle("chosen", Number(row.dataset.item) === index));
    document.querySelectorAll(".tags button").forEach((tag) => tag.setAttribute("aria-pressed", String(Number(tag.dataset.item) === index)));
    if (move && index >= 0) moveTo(centres[index].map(Math.round));
    paintSurfaces();
  }
  function neighbour(by) {
    if (!items.length) return step(AXIS[AXIAL], by > 0 ? -1 : 1);
    choose(Math.max(0, Math.min(items.length - 1, chosen < 0 ? nearest() : chosen + by)));
  }
  function nearest() {
    const here = voxelOf();
    const far = centres.map((centre) => centre.reduce((sum, value, axis) => sum + ((value - here[axis]) * scan.pixDimsRAS[axis + 1]) ** 2, 0));
    return far.indexOf(Math.min(...far));
  }

  const sliders = [...document.querySelectorAll("input.slice")];
  sliders.forEach((slider) => {
    const axis = AXIS[slider.dataset.plane];
    slider.max = dims[axis] - 1;
    slider.addEventListener("input", () => { const voxel = voxelOf(); voxel[axis] = Number(slider.value); moveTo(voxel); });
  });
  nv.onLocationChange = () => {
    const voxel = voxelOf(), number = labels.img[at(voxel)], item = items[numbers.indexOf(number)];
    const grey = settings.low + scan.img[at(voxel)] * (settings.high - settings.low) / 255;
    const mm = nv.frac2mm(nv.scene.crosshairPos, 0, true);
    const sides = [["R", "L"], ["A", "P"], ["S", "I"]];
    sliders.forEach((slider) => { slider.value = voxel[AXIS[slider.dataset.plane]]; });
    sliders.forEach((slider) => {
      const axis = AXIS[slider.dataset.plane];
      slider.setAttribute("aria-valuetext", `${Math.abs(mm[axis]).toFixed(0)} mm ${sides[axis][mm[axis] < 0 ? 1 : 0]}`);
    });
    const bound = scan.img[at(voxel)] === 0 ? "≤ " : scan.img[at(voxel)] === 255 ? "≥ " : "";
    const readout = element("readout");
    const name = document.createElement("b");
    name.textContent = number && item ? item.name : "";
    const place = [0, 1, 2].map((axis) => `${sides[axis][mm[axis] < 0 ? 1 : 0]} ${Math.abs(mm[axis]).toFixed(0)}`).join("  ");
    readout.replaceChildren(name, ` ${bound}${grey.toFixed(0)} ${settings.unit}  ·  ${place} mm`);
    drawNames();
  };

  // --- names beside the planes, tied to their vertebrae by lines
  function project(plane, voxel) {
    const tile = nv.screenSlices.find((slice) => slice.axCorSag === plane);
    if (!tile) return null;
    const [left, top, width, height] = tile.leftTopWidthHeight, pixels = nv.uiData.dpr || 1;
    const mm = [0, 1, 2].map((axis) => (voxel[axis] + 0.5) / dims[axis]);
    const ortho = scan.frac2mmOrtho, [first, second] = plane === SAGITTAL ? [1, 2] : [0, 2];
    const along = (axis) => ortho[axis] * mm[0] + ortho[4 + axis] * mm[1] + ortho[8 + axis] * mm[2] + ortho[12 + axis];
    let x = (along(first) - tile.leftTopMM[0]) / tile.fovMM[0];
    const y = (along(second) - tile.leftTopMM[1]) / tile.fovMM[1];
    if (tile.fovMM[0] > 0) x = 1 - x;                             // mirrored: anterior and right stand on the left
    const whole = panes.getBoundingClientRect(), box = panes.querySelector(`.pane[data-plane="${plane}"]`).getBoundingClientRect();
    return [(left + x * width) / pixels - (box.left - whole.left), (top + (1 - y) * height) / pixels - (box.top - whole.top)];
  }
  function spread(wanted, gap, least, most) {
    const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]), placed = wanted.slice();
    order.forEach((index, i) => { placed[index] = Math.max(placed[index], i ? placed[order[i - 1]] + gap : least); });
    for (let i = order.length - 1; i >= 0; i--) placed[order[i]] = Math.min(placed[order[i]], i === order.length - 1 ? most : placed[order[i + 1]] - gap);
    return placed;
  }
  const tagBoxes = [...document.querySelectorAll(".tags")];
  tagBoxes.forEach((box) => items.forEach((item, index) => {
    const tag = document.createElement("button"), dot = document.createElement("span");
    tag.type = "button";
    tag.dataset.item = index;
    tag.setAttribute("aria-pressed", "false");
    tag.className = item.unsure ? "unsure" : "";
    dot.className = "dot";
    dot.style.background = item.colour;
    tag.append(dot, item.name);
    tag.addEventListener("click", () => choose(index));
    box.append(tag);
  }));
  let named = true;
  function drawNames() {
    tagBoxes.forEach((box) => {
      const pane = box.parentElement, plane = Number(pane.dataset.plane), lines = pane.querySelector(".lines");
      const width = pane.clientWidth, height = pane.clientHeight;
      box.hidden = !named;
      lines.replaceChildren();
      if (!named || !height) return;
      const points = centres.map((centre) => project(plane, centre));
      if (points.includes(null)) return;
      const ys = spread(points.map((p) => p[1]), Math.min(26, (height - HEAD - 20) / Math.max(1, points.length)), HEAD + 16, height - 14);
      [...box.children].forEach((tag, index) => {
        const [x, y] = points[index], seen = y > HEAD && y < height && x > 0 && x < width;
        tag.style.left = "8px";
        tag.style.top = `${ys[index]}px`;
        tag.style.opacity = seen ? 1 : 0.35;
        if (!seen) return;
        const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
        line.setAttribute("d", `M${12 + tag.offsetWidth} ${ys[index]} L${24 + tag.offsetWidth} ${ys[index]} L${x} ${y}`);
        line.setAttribute("fill", "none");
        line.setAttribute("stroke", items[index].colour);
        line.setAttribute("stroke-width", index === chosen ? 2.2 : 1);
        line.setAttribute("stroke-opacity", index === chosen ? 1 : 0.7);
        const end = document.createElementNS("http://www.w3.org/2000/svg", "circle");
        Object.entries({ cx: x, cy: y, r: index === chosen ? 4 : 2.4, fill: items[index].colour }).forEach(([key, value]) => end.setAttribute(key, value));
        lines.append(line, end);
      });
    });
  }

  // --- surfaces: naive surface nets on each label, blurred once so that they are smooth
  function boxes() {
    const found = new Map();
    for (let z = 0, i = 0; z < dims[2]; z++) for (let y = 0; y < dims[1]; y++) for (let x = 0; x < dims[0]; x++, i++) {
      const value = labels.img[i];
      if (!value) continue;
      const box = found.get(value);
      if (!box) { found.set(value, [x, y, z, x, y, z]); continue; }
      if (x < box[0]) box[0] = x; else if (x > box[3]) box[3] = x;
      if (y < box[1]) box[1] = y; else if (y > box[4]) box[4] = y;
      if (z > box[5]) box[5] = z;
    }
    return found;
  }
  function blurred(number, box) {
    const size = [0, 1, 2].map((axis) => box[axis + 3] - box[axis] + 7), strides = [1, size[0], size[0] * size[1]];
    let field = new Float32Array(size[0] * size[1] * size[2]);
    for (let z = box[2]; z <= box[5]; z++) for (let y = box[1]; y <= box[4]; y++) for (let x = box[0]; x <= box[3]; x++) {
      if (labels.img[x + dims[0] * (y + dims[1] * z)] === number) field[(x - box[0] + 3) + size[0] * (y - box[1] + 3) + strides[2] * (z - box[2] + 3)] = 1;
    }
    for (const stride of strides) {
      const next = new Float32Array(field.length);
      for (let i = stride; i < field.length - stride; i++) next[i] = 0.25 * (field[i - stride] + 2 * field[i] + field[i + stride]);
      field = next;
    }
    return { field, size, strides };
  }
  const EDGES = [];
  for (let a = 0; a < 8; a++) for (const bit of [1, 2, 4]) if (!(a & bit)) EDGES.push([a, a | bit]);
  function surface(number, box) {
    const { field, size, strides } = blurred(number, box), points = [], faces = [];
    const cell = new Int32Array(field.length).fill(-1), corner = [0, 1, 2, 3, 4, 5, 6, 7].map((c) => (c & 1) * strides[0] + (c >> 1 & 1) * strides[1] + (c >> 2) * strides[2]);
    const affine = scan.hdr.affine, level = 0.5;
    for (let z = 0; z < size[2] - 1; z++) for (let y = 0; y < size[1] - 1; y++) for (let x = 0; x < size[0] - 1; x++) {
      const i = x + strides[1] * y + strides[2] * z;
      let inside = 0;
      for (let c = 0; c < 8; c++) if (field[i + corner[c]] > level) inside |= 1 << c;
      if (inside === 0 || inside === 255) continue;
      const p = [0, 0, 0];
      let crossings = 0;
      for (const [a, b] of EDGES) {
        if ((inside >> a & 1) === (inside >> b & 1)) continue;
        const from = field[i + corner[a]], t = (level - from) / (field[i + corner[b]] - from);
        for (let axis = 0; axis < 3; axis++) p[axis] += (a >> axis & 1) + t * ((b >> axis & 1) - (a >> axis & 1));
        crossings++;
      }
      const v = [x, y, z].map((value, axis) => value + p[axis] / crossings - 3 + box[axis]);
      cell[i] = points.length / 3;
      for (let row = 0; row < 3; row++) points.push(affine[row][0] * v[0] + affine[row][1] * v[1] + affine[row][2] * v[2] + affine[row][3]);
    }
    for (let z = 1; z < size[2] - 1; z++) for (let y = 1; y < size[1] - 1; y++) for (let x = 1; x < size[0] - 1; x++) {
      const i = x + strides[1] * y + strides[2] * z, here = field[i] > level;
      for (let axis = 0; axis < 3; axis++) {
        if ((field[i + strides[axis]] > level) === here) continue;
        const u = strides[(axis + 1) % 3], w = strides[(axis + 2) % 3];
        const [a, b, c, d] = [cell[i], cell[i - u], cell[i - u - w], cell[i - w]];
        if (here) faces.push(a, b, c, a, c, d); else faces.push(a, c, b, a, d, c);
      }
    }
    return [new Float32Array(points), new Uint32Array(faces)];
  }

  const solid = new Niivue({ ...plain, backColor: [0.043, 0.055, 0.075, 1], show3Dcrosshair: false, isOrientCube: false, isOrientationTextVisible: false, sliceType: SLICE_TYPE.RENDER });
  await solid.attachToCanvas(element("solid"));
  const meshes = [];
  for (const [number, box] of boxes()) {
    const index = numbers.indexOf(number), colour = index < 0 ? [178, 178, 178] : rgb(items[index].colour);
    const [points, faces] = surface(number, box);
    if (!faces.length) continue;
    const mesh = new NVMesh(points, faces, index < 0 ? "" : items[index].name, new Uint8Array([...colour, 255]), 1, true, solid.gl);
    meshes.push({ mesh, index, colour });
    solid.addMesh(mesh);
  }
  function paintSurfaces() {
    for (const { mesh, index, colour } of meshes) {
      const share = chosen < 0 || index === chosen ? 1 : 0.38;
      mesh.rgba255 = new Uint8Array([...colour.map((c) => Math.round(c * share + 45 * (1 - share))), 255]);
      mesh.updateMesh(solid.gl);
    }
    solid.drawScene();
  }
  const DIRECTIONS = { front: [180, 5], side: [-90, 5], back: [0, 5] };
  document.querySelectorAll("[data-turn]").forEach((button) => button.addEventListener("click", () => solid.setRenderAzimuthElevation(...DIRECTIONS[button.dataset.turn])));
  if (!meshes.length) document.querySelector(".pane.solid").classList.add("bare");

  // --- tools and keys
  const windowButtons = Object.entries(settings.windows).map(([name, range]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = { bone: "Bone", soft: "Soft tissue", full: "Full range" }[name];
    button.dataset.window = name;
    button.addEventListener("click", () => setWindow(name));
    element("windows").append(button);
    return { button, name, range };
  });
  function setWindow(name) {
    for (const { button, name: own, range } of windowButtons) {
      button.setAttribute("aria-pressed", String(own === name));
      if (own === name) [scan.cal_min, scan.cal_max] = range;
    }
    nv.updateGLVolume();
  }
  const zoom = (factor) => {                                      // around the crosshair; the viewer shifts by `pan` before it scales
    const scale = Math.max(1, Math.min(8, nv.scene.pan2Dxyzmm[3] * factor)), here = nv.frac2mm(nv.scene.crosshairPos), middle = nv.frac2mm([0.5, 0.5, 0.5]);
    nv.setPan2Dxyzmm(scale === 1 ? [0, 0, 0, 1] : [...[0, 1, 2].map((axis) => middle[axis] - here[axis] * scale), scale]);
    drawNames();
  };
  const START = [235, 8], FIT = 0.8;
  const reset = () => {
    nv.setPan2Dxyzmm([0, 0, 0, 1]);
    setWindow(windowButtons[0].name);
    solid.setRenderAzimuthElevation(...START);
    solid.setScale(FIT);
    choose(-1, false);
    start();
  };
  element("opacity").addEventListener("input", (event) => { nv.setOpacity(1, Number(event.target.value) / 100); });
  element("names").addEventListener("click", () => { named = !named; element("names").setAttribute("aria-pressed", String(named)); drawNames(); });
  element("zoom-in").addEventListener("click", () => zoom(1.4));
  element("zoom-out").addEventListener("click", () => zoom(1 / 1.4));
  element("reset").addEventListener("click", reset);

  const KEYS = { ArrowUp: () => neighbour(-1), ArrowDown: () => neighbour(1), ArrowLeft: () => step(0, 1), ArrowRight: () => step(0, -1), ",": () => step(1, 1),
    ".": () => step(1, -1), PageUp: () => step(2, 1), PageDown: () => step(2, -1), "+": () => zoom(1.4), "-": () => zoom(1 / 1.4), n: () => element("names").click(), r: reset };
  windowButtons.forEach(({ name }) => { KEYS[name[0]] = () => setWindow(name); });
  const turn = (a, e) => () => solid.setRenderAzimuthElevation(solid.scene.renderAzimuth + a, Math.max(-90, Math.min(90, solid.scene.renderElevation + e)));
  const SOLID_KEYS = { ArrowLeft: turn(-10, 0), ArrowRight: turn(10, 0), ArrowUp: turn(0, 10), ArrowDown: turn(0, -10),
    "+": () => solid.setScale(solid.scene.volScaleMultiplier * 1.2), "-": () => solid.setScale(solid.scene.volScaleMultiplier / 1.2), r: reset };
  // Caught before the viewer's own keys, which do other things.
  for (const [canvas, keys] of [["slices", KEYS], ["solid", SOLID_KEYS]]) {
    const listen = (act) => (event) => {
      if (event.target !== element(canvas) || event.key === "Tab" || event.ctrlKey || event.metaKey || event.altKey) return;
      event.stopImmediatePropagation();
      const found = keys[event.key] || keys[event.key.toLowerCase()];
      if (!found) return;
      event.preventDefault();
      if (act) found();
    };
    panes.addEventListener("keydown", listen(true), true);
    panes.addEventListener("keyup", listen(false), true);
  }
  document.querySelectorAll("tr[data-item]").forEach((row) => row.addEventListener("click", () => {
    choose(Number(row.dataset.item));
    if (panes.getBoundingClientRect().bottom < 80 || panes.getBoundingClientRect().top > innerHeight - 80) panes.scrollIntoView({ behavior: "smooth", block: "center" });
  }));
  element("slices").addEventListener("pointerup", () => {
    const index = numbers.indexOf(labels.img[at(voxelOf())]);
    if (index !== chosen) choose(index, false);
  });
  element("slices").addEventListener("wheel", () => requestAnimationFrame(drawNames), { passive: true });
  element("slices").addEventListener("pointermove", (event) => { if (event.buttons) requestAnimationFrame(drawNames); });

  function start() {
    moveTo(items.length ? centres[Math.floor(items.length / 2)].map(Math.round) : dims.map((n) => n >> 1));
  }
  new ResizeObserver(layOut).observe(panes);
  if (element("picture")) element("picture").hidden = true;
  setWindow(windowButtons[0].name);
  layOut();
  solid.setScale(FIT);
  solid.setRenderAzimuthElevation(...START);
  start();
  globalThis.spinePage = { nv, solid, items, voxelOf, choose, chosen: () => chosen, meshes: meshes.length };   // for tests and the curious
  document.documentElement.dataset.ready = "yes";
})();
