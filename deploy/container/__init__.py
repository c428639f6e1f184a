"""The image: its recipe, what fills the build context, the tools that build and run it, and its bill of materials."""
