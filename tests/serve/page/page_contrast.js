// Texts whose contrast is below WCAG's level AA, by computed colours (success criterion 1.4.3).
() => {
  // Mixed colours are told as color(srgb 0.96 0.95 0.93 / 0.9), all others as rgb(246, 243, 238).
  const parse = (text) => {
    const numbers = (text.match(/[\d.]+/g) || []).map(Number);
    return text.startsWith('color(srgb') ? numbers.map((v, i) => (i < 3 ? v * 255 : v)) : numbers;
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.backgroundImage !== 'none') return null;
      layers.push(parse(style.backgroundColor));
    }
    return layers.reverse().reduce((below, layer) => layer.length ? over(layer, below) : below, [255, 255, 255]);
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const at = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !at.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (at.closest('script, style, svg')) continue;
    if (at.getBoundingClientRect().width < 2 || at.closest('[disabled]')) continue;
    const style = getComputedStyle(at);
    const below = ground(at);
    if (!below) continue;
    const [a, b] = [light(over(parse(style.color), below)), light(below)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    const said = `${ratio.toFixed(2)} ${style.color} on ${below.map(Math.round)}: ${text.slice(0, 40)}`;
    if (ratio < (large ? 3 : 4.5)) poor.push(said);
  }
  return poor;
}
