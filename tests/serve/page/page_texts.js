// Texts and placeholders that can be read, without what files and models say of themselves.
() => {
  const seen = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const at = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (text && at.checkVisibility({opacityProperty: true, visibilityProperty: true})
        && at.getBoundingClientRect().width > 1
        && !at.closest('script, style, .g-code, #model-detail dd, .g-item small')) seen.push(text);
  }
  for (const field of document.querySelectorAll('[placeholder]'))
    if (field.checkVisibility() && field.placeholder.trim()) seen.push(field.placeholder);
  return seen;
}
