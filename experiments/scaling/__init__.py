"""The scaling study (Genie, section 3.1 and appendix C)."""
