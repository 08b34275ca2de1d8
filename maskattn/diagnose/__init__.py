from maskattn.diagnose.compare import Place, Report, compare

__all__ = ["Place", "Report", "compare"]
