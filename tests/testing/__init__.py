"""Tests of allswell.testing: the witness itself."""
