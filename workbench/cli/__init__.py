"""The command line: argparse -> recipe -> one call each."""
