"""The commands of `rollout`, a file each: it parses and shows; heavy imports happen inside."""
