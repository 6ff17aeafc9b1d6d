import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Timer;
import java.util.TimerTask;
import java.util.concurrent.CountDownLatch;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

/** Runs one scenario with pgjdbc: a job in JSON on stdin, a report in JSON on stdout. */
public final class Main {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final String STALE = "cached plan must not change result type";

    private interface Work {
        Object on(Connection connection, int index, Report report) throws Exception;
    }

    private interface Step {
        Object run() throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        JsonNode job = JSON.readTree(System.in);
        Report made =
                switch (job.get("scenario").asText()) {
                    case "isolation" -> isolation(job);
                    case "copy" -> copy(job);
                    case "mixed" -> mixed(job);
                    case "timeouts" -> timeouts(job);
                    case "ddl" -> ddl(job);
                    case "soak" -> Soak.run(job);
                    default -> throw new IllegalArgumentException("no such scenario");
                };
        JSON.writeValue(System.out, made.asMap());
    }

    /** The work for every URL at once, each on a connection of its own; its failures are counted. */
    private static Report everywhere(List<String> urls, Work work) throws InterruptedException {
        Report report = new Report(urls.size());
        List<Thread> threads = new ArrayList<>();
        for (int index = 0; index < urls.size(); index++) {
            int which = index;
            Thread thread = new Thread(() -> {
                try (Connection connection = DriverManager.getConnection(urls.get(which))) {
                    report.saw(which, work.on(connection, which, report));
                } catch (Exception error) {
                    report.failed(error);
                }
            });
            thread.start();
            threads.add(thread);
        }
        for (Thread thread : threads) thread.join();
        return report;
    }

    private static List<String> strings(JsonNode array) {
        List<String> made = new ArrayList<>();
        array.forEach(node -> made.add(node.asText()));
        return made;
    }

    /** What the step found, or the server's code where it refuses; what is no answer of the server is thrown. */
    private static Object outcome(Report report, Step step) throws Exception {
        report.count(1, 0);
        try {
            return step.run();
        } catch (BatchUpdateException error) {
            return "batch " + error.getSQLState() + " " + error.getUpdateCounts().length;
        } catch (SQLException error) {
            if (error.getSQLState() == null || error.getSQLState().startsWith("08")) throw error;
            return error.getSQLState();
        }
    }

    private static Object rows(PreparedStatement statement, Object... values) throws SQLException {
        for (int index = 0; index < values.length; index++) statement.setObject(index + 1, values[index]);
        try (ResultSet found = statement.executeQuery()) {
            StringBuilder text = new StringBuilder();
            while (found.next()) {
                for (int column = 1; column <= found.getMetaData().getColumnCount(); column++) {
                    Object value = found.getObject(column);
                    text.append(value instanceof byte[] bytes ? HexFormat.of().formatHex(bytes) : value).append('|');
                }
            }
            return text.length() < 200 ? text.toString() : text.length() + " " + text.toString().hashCode();
        }
    }

    private static Object once(Connection connection, String text, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(text)) {
            return rows(statement, values);
        }
    }

    private static Object execute(Connection connection, String text) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(text);
            return "done";
        }
    }

    private static Report isolation(JsonNode job) throws Exception {
        int rounds = job.get("rounds").asInt();
        List<String> expect = strings(job.get("expect"));
        return everywhere(strings(job.get("urls")), (connection, index, report) -> {
            int wrong = 0;
            for (int round = 0; round < rounds; round++) {
                if (!(expect.get(index) + "|").equals(once(connection, "select name from who"))) wrong++;
            }
            report.count(rounds, wrong);
            return wrong;
        });
    }

    private static Report copy(JsonNode job) throws Exception {
        String table = job.get("table").asText();
        return everywhere(strings(job.get("urls")), (connection, client, report) -> {
            StringBuilder lines = new StringBuilder();
            for (int n = 0; n < job.get("rounds").asInt(); n++) {
                lines.append(client + "\t" + n + "\tbody " + client + " " + n + "\n");
            }
            CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
            String into = "copy " + table + " from stdin";
            List<Object> seen = new ArrayList<>();
            seen.add(copies.copyIn(into, new StringReader(lines.toString())));
            seen.add(outcome(report, () -> copies.copyIn(into, new StringReader(client + "\t-1\trefused\n"))));
            StringWriter back = new StringWriter();
            String from = "(select * from " + table + " where client = " + client + " order by n)";
            seen.add(copies.copyOut("copy " + from + " to stdout", back));
            report.count(2, back.toString().equals(lines.toString()) ? 0 : 1);
            seen.add(once(connection, "select 1"));
            return seen;
        });
    }

    private static Report mixed(JsonNode job) throws Exception {
        String table = job.get("table").asText();
        int rounds = job.get("rounds").asInt();
        return everywhere(strings(job.get("urls")), (connection, client, report) -> {
            List<Object> seen = new ArrayList<>();
            String count = "select count(*) from " + table + " where client = ?";
            String insert = "insert into " + table + " values (?, ?, 'row') returning n";

            // pgjdbc names a statement at its fifth execution, and then reads binary values.
            String typed = "select ?::int8, ?::text, ?::bytea, ?::numeric, ?::float8, ?::text";
            Object[] values = {1L << 40, "naïve " + client, new byte[] {0, -1}, new BigDecimal("1.50"), 0.1, null};
            for (int n = 0; n < 8; n++) seen.add(outcome(report, () -> once(connection, typed, values)));

            // More statements than a server connection keeps, then the first ones again.
            for (int n = 0; n < rounds; n++) {
                String text = "select " + n % (rounds * 4 / 5) + " + ?";
                try (PreparedStatement statement = connection.prepareStatement(text)) {
                    statement.unwrap(org.postgresql.PGStatement.class).setPrepareThreshold(1);
                    seen.add(outcome(report, () -> rows(statement, client)));
                }
            }

            connection.setAutoCommit(false);
            for (int round = 0; round < 2; round++) {
                for (int n : new int[] {1, 1, 2}) seen.add(outcome(report, () -> once(connection, insert, client, n)));
                seen.add(outcome(report, () -> once(connection, count, client)));
                connection.rollback();
            }
            for (int n = 0; n < 5; n++) once(connection, insert, client, n);
            connection.commit();
            seen.add(once(connection, count, client));
            for (boolean together : new boolean[] {true, false}) {
                connection.setAutoCommit(!together);
                for (int first : new int[] {3, 20}) {
                    seen.add(outcome(report, () -> batch(connection, table, client, first)));
                    if (together) connection.rollback();
                }
                seen.add(outcome(report, () -> once(connection, count, client)));
                if (together) connection.rollback();
            }

            connection.setAutoCommit(false);
            String many = "select n, md5(n::text) from generate_series(1, ?) n";
            try (PreparedStatement cursor = connection.prepareStatement(many)) {
                cursor.setFetchSize(500);
                seen.add(outcome(report, () -> rows(cursor, 20000)));
            }
            connection.commit();
            connection.setAutoCommit(true);
            seen.add(outcome(report, () -> once(connection, "select repeat(?, 3000000)", "ab")));
            seen.add(outcome(report, () -> once(connection, "select md5(?)", "ab".repeat(1_500_000))));

            seen.add(outcome(report, () -> canceled(connection)));
            seen.add(outcome(report, () -> once(connection, count, client)));
            return seen;
        });
    }

    /** Rows from `first` on, in one go: a number below 5 is taken already. */
    private static Object batch(Connection connection, String table, int client, int first) throws SQLException {
        String text = "insert into " + table + " values (?, ?, 'batch')";
        try (PreparedStatement statement = connection.prepareStatement(text)) {
            for (int n : new int[] {first + 100, first, first + 101}) {
                statement.setInt(1, client);
                statement.setInt(2, n);
                statement.addBatch();
            }
            return statement.executeBatch().length;
        }
    }

    private static Object canceled(Connection connection) throws SQLException {
        Timer timer = new Timer(true);
        try (Statement statement = connection.createStatement()) {
            timer.schedule(
                    new TimerTask() {
                        @Override
                        public void run() {
                            try {
                                statement.cancel();
                            } catch (SQLException error) {
                                throw new IllegalStateException(error);
                            }
                        }
                    },
                    200);
            statement.execute("select pg_sleep(20)");
            return "finished";
        } finally {
            timer.cancel();
        }
    }

    private static Report timeouts(JsonNode job) throws Exception {
        List<String> urls = strings(job.get("urls"));
        urls.addAll(strings(job.get("plain")));
        return everywhere(urls, (connection, index, report) -> outcome(
                report, () -> "|".equals(once(connection, "select pg_sleep(" + job.get("seconds") + ")")) ? "finished" : "?"));
    }

    private static Report ddl(JsonNode job) throws Exception {
        List<String> urls = strings(job.get("urls"));
        String table = job.get("table").asText();
        CountDownLatch ready = new CountDownLatch(urls.size());
        CountDownLatch changed = new CountDownLatch(1);
        Thread change = new Thread(() -> {
            try (Connection owner = DriverManager.getConnection(job.get("owner").asText())) {
                ready.await();
                execute(owner, "alter table " + table + " add column extra text default 'new'");
                changed.countDown();
            } catch (SQLException | InterruptedException error) {
                throw new IllegalStateException(error);
            }
        });
        change.start();
        return everywhere(urls, (connection, index, report) -> {
            // In a transaction the driver can't prepare the statement anew by itself.
            connection.setAutoCommit(false);
            int stale = 0;
            for (int round = 0; round < 2 * job.get("rounds").asInt(); round++) {
                if (round == job.get("rounds").asInt()) {
                    ready.countDown();
                    changed.await();
                }
                report.count(1, 0);
                try {
                    Object found = once(connection, "select name, id, t.* from " + table + " t where id = ?", 1);
                    if (!found.toString().startsWith("one|1|")) report.count(0, 1);
                    connection.commit();
                } catch (SQLException error) {
                    if (!error.getMessage().contains(STALE)) throw error;
                    connection.rollback();
                    stale++;
                }
            }
            return stale;
        });
    }
}
