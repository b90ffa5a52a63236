"""The networks (sections 3.2, 3.4, 3.5, appendix E) and the directories they are kept in."""
