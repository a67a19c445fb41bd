"""The platformers recipe (Genie, appendix B.1): filter, select, data card."""
