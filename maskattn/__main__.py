"""`python -m maskattn`: the command, of this interpreter."""

from maskattn.cli.main import main

if __name__ == "__main__":
    main(prog_name="maskattn")
