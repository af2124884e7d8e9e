"""Other people's recipes for the same pipeline, measured beside levels of this project.

    contest = Contest(run=run, folder=folder)
    failed = contest.measure(recipe)      # in a process of its own, with a time limit
    print(peers_table(contest.rows))

They are shown, never judged: no history holds them and no gate reads them.
"""

from studies.peers.contest import Contest
from studies.peers.recipes import PEERS, RECIPES, Ground, Recipe
from studies.peers.table import peers_table

__all__ = ["PEERS", "RECIPES", "Contest", "Ground", "Recipe", "peers_table"]
