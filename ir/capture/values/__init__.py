"""Values that a forward asks for though a compiled program cannot know them, where rules decide them."""
