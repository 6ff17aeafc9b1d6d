import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** Counts of a run, and what each connection saw. */
final class Report {
    private final Object[] detail;
    private final Map<String, Integer> errors = new TreeMap<>();
    private int statements;
    private int wrong;

    Report(int connections) {
        detail = new Object[connections];
    }

    synchronized void count(int statements, int wrong) {
        this.statements += statements;
        this.wrong += wrong;
    }

    synchronized void saw(int connection, Object what) {
        detail[connection] = what;
    }

    synchronized void failed(Exception error) {
        errors.merge(error.toString(), 1, Integer::sum);
    }

    synchronized Map<String, Object> asMap() {
        List<Object> seen = Arrays.asList(detail);
        return Map.of("statements", statements, "wrong", wrong, "errors", errors, "detail", seen);
    }
}
