"""The paper's human study (appendix A, Figure 4, Table 2): build it, serve it, read its results."""
