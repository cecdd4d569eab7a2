// pymdownx.arithmatex leaves formulas as \(...\) and \[...\] in elements of the class arithmatex.
window.MathJax = {
  tex: {inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]]},
  options: {ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex"},
};
