"""What a level costs over thousands of prompts, divided over processes: `sdopt evaluate`."""
