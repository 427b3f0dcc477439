document$.subscribe(() => {
  // Formulas: Markdown pages mark them (arithmatex), notebooks carry them as they were typed.
  const delimiters = [
    { left: "$$", right: "$$", display: true },
    { left: "$", right: "$", display: false },
    { left: "\\(", right: "\\)", display: false },
    { left: "\\[", right: "\\]", display: true },
  ]
  const formulas = ".arithmatex, .jp-MarkdownOutput, .jp-RenderedLatex"
  for (const part of document.querySelectorAll(formulas)) {
    renderMathInElement(part, { delimiters })
  }

  // The keyboard reaches what scrolls, and screen readers hear what the search box is.
  const wide = ".md-typeset__scrollwrap, .scrolls, .highlight-ipynb, .jp-RenderedText pre, .katex-display"
  for (const part of document.querySelectorAll(wide)) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0
  }
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search")
})
