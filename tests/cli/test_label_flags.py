"""Tests of where `genie data label` puts its table."""

import pytest

from genie_jax.cli import curation


@pytest.mark.parametrize(
  "folder, name",
  [
    ("clips", "clips-labels.csv"),
    ("a/clips//", "a/clips-labels.csv"),
    (".", "{}/clips-labels.csv"),
    ("./", "{}/clips-labels.csv"),
    ("train/..", "{}/clips-labels.csv"),
  ],
)
def test_the_table_is_beside_the_folder(tmp_path, monkeypatch, folder, name):
  (tmp_path / "clips/train").mkdir(parents=True)
  monkeypatch.chdir(tmp_path / "clips")
  assert curation.labels_beside(folder) == name.format(tmp_path)
