// Faults of a page that its DOM shows: texts on each other, texts outside their box, sideways scroll.
(() => {
  const faults = [], rects = [];
  const visible = node => node.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode, parent = text.parentElement;
    if (!text.data.trim() || ["SCRIPT", "STYLE", "TITLE", "title", "option"].includes(parent.tagName)) continue;
    if (parent.closest(".tip") || !visible(parent)) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    for (const r of range.getClientRects()) {
      if (r.width > 0.5 && r.height > 0.5) rects.push({ r, text: text.data.slice(0, 60), parent });
    }
    const size = parseFloat(getComputedStyle(parent).fontSize);
    if (size < 11) faults.push(`${size} px: ${text.data.slice(0, 40)}`);
  }
  // of a line of text only its middle counts: lines may touch
  const core = r => ({ left: r.left + 1, right: r.right - 1, top: r.top + r.height * 0.2, bottom: r.bottom - r.height * 0.2 });
  rects.sort((a, b) => a.r.top - b.r.top);
  for (let i = 0; i < rects.length; i++) {
    const a = core(rects[i].r);
    for (let j = i + 1; j < rects.length && rects[j].r.top < rects[i].r.bottom; j++) {
      const b = core(rects[j].r);
      if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) {
        faults.push(`overlap: "${rects[i].text}" and "${rects[j].text}"`);
      }
    }
  }
  const box = node => {
    const group = node.closest("g.box");
    if (group) return group.querySelector(".frame");
    return node.closest("svg, .tile, td, th, button, .part, .switch, section, header, .comparison");
  };
  for (const { r, text, parent } of rects) {
    const holder = box(parent);
    if (!holder) continue;
    const b = holder.getBoundingClientRect();
    if (r.left < b.left - 1.5 || r.right > b.right + 1.5 || r.top < b.top - 2 || r.bottom > b.bottom + 2) {
      faults.push(`outside its ${holder.tagName}.${holder.getAttribute("class") || ""}: "${text}"`);
    }
  }
  for (const node of document.querySelectorAll("section, .tile, table, svg, canvas, .bars")) {
    const r = node.getBoundingClientRect();
    if (r.right > innerWidth + 1 || r.left < -1) faults.push(`beyond the page: ${node.tagName}.${node.getAttribute("class") || ""} ${r.left} to ${r.right}`);
  }
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) faults.push(`scrolls sideways: ${wide} of ${innerWidth}`);
  return [...new Set(faults)];
})()
