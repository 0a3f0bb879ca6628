"""Builds vitfast's native libraries: what to build, with which tools, by ninja."""
