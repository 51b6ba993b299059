"""Puts the real folders envs/ and learners/ into a wheel, where the checkout has two links."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LINKED_FOLDERS = ("envs", "learners")


class LinkedFoldersHook(BuildHookInterface):
    """Adds the linked folders to standard wheels; an editable install points at the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            for name in LINKED_FOLDERS:
                build_data["force_include"][f"{self.root}/{name}"] = f"rollout/{name}"
