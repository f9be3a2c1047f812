from hypotheses import report
from hypotheses.errors import one_line

with one_line():
    report.main()
