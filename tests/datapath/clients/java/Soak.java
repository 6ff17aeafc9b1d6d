import com.fasterxml.jackson.databind.JsonNode;
import java.io.StringReader;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.Timer;
import java.util.TimerTask;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

/**
 * One connection's work until the time is over, each answer checked. What failed and what was wrong is kept with its
 * time; who asks judges what of it is explained.
 */
final class Soak {
    private static final int MOST = 500;
    private static final int MANY = 300;
    /** What a changed table may lead to: a stale plan, and another number of columns. The connection goes on. */
    private static final Set<String> STALE = Set.of("0A000", "08P01");

    private interface Step {
        void run() throws Exception;
    }

    private final JsonNode job;
    private final int index;
    private final String name;
    private final String expected;
    private final Report report;
    private final Random random = new Random();
    private final List<Object> failed = new ArrayList<>();
    private final List<Object> wrong = new ArrayList<>();
    private Connection connection;
    private double opened;
    private int round;

    private Soak(JsonNode job, int index, Report report) {
        this.job = job;
        this.index = index;
        this.report = report;
        name = job.get("client").asText() + "-" + index;
        expected = job.get("expect").get(index).asText();
    }

    static Report run(JsonNode job) throws InterruptedException {
        Report report = new Report(job.get("urls").size());
        List<Thread> threads = new ArrayList<>();
        for (int index = 0; index < job.get("urls").size(); index++) {
            Soak client = new Soak(job, index, report);
            threads.add(new Thread(client::work));
        }
        for (Thread thread : threads) thread.start();
        for (Thread thread : threads) thread.join();
        return report;
    }

    private static double now() {
        return System.currentTimeMillis() / 1000.0;
    }

    private void work() {
        double end = now() + job.get("seconds").asDouble();
        double lifetime = job.get("lifetimes").get(index).asDouble();
        Step[] steps = {
            this::own, this::typed, this::transaction, this::copies, this::changing, this::big,
            this::batch, this::refused, this::many, this::cursor, this::cancelled,
        };
        for (round = index; now() < end; round++) {
            try {
                if (connection == null) {
                    connection = DriverManager.getConnection(job.get("urls").get(index).asText());
                    opened = now();
                }
                steps[round % steps.length].run();
            } catch (Exception error) {
                if (failed.size() < MOST) failed.add(List.of(now(), error.toString()));
                if (!(error instanceof SQLException sql && STALE.contains(sql.getSQLState()))) close();
            }
            if (lifetime > 0 && connection != null && now() - opened > lifetime) close();
            pause();
        }
        close();
        report.saw(index, Map.of("failed", failed, "wrong", wrong));
    }

    private void pause() {
        try {
            Thread.sleep((long) (1000 * job.get("pause").asDouble() * (0.5 + random.nextDouble())));
        } catch (InterruptedException interrupted) {
            throw new IllegalStateException(interrupted);
        }
    }

    private void close() {
        try {
            if (connection != null) connection.close();
        } catch (SQLException ignored) {
            // It is gone either way.
        }
        connection = null;
    }

    private void check(String what, Object found, Object wanted) {
        boolean right = wanted.equals(found);
        report.count(1, right ? 0 : 1);
        if (right || wrong.size() >= MOST) return;
        String text = what + ": " + found + ", not " + wanted;
        wrong.add(List.of(now(), text.substring(0, Math.min(text.length(), 300))));
    }

    private String token() {
        return String.format("%016x", random.nextLong());
    }

    /** The first row, its columns joined by '|'; null where there is none. */
    private String row(String text, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(text)) {
            for (int column = 0; column < values.length; column++) statement.setObject(column + 1, values[column]);
            try (ResultSet found = statement.executeQuery()) {
                if (!found.next()) return null;
                List<String> columns = new ArrayList<>();
                for (int column = 1; column <= found.getMetaData().getColumnCount(); column++) {
                    columns.add(found.getString(column));
                }
                return String.join("|", columns);
            }
        }
    }

    private void execute(String text) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(text);
        }
    }

    private void own() throws SQLException {
        for (int turn = 0; turn < 3; turn++) {
            String mine = token();
            check("own schema", row("select name, ?::text from who", mine), expected + "|" + mine);
        }
    }

    private void typed() throws SQLException {
        long number = random.nextLong();
        String mine = "naïve " + token();
        byte[] bytes = mine.getBytes(StandardCharsets.UTF_8);
        String found = row("select ?::int8, ?::text, encode(?::bytea, 'hex'), ?::text is null", number, mine, bytes, null);
        check("typed", found, number + "|" + mine + "|" + HexFormat.of().formatHex(bytes) + "|t");
    }

    private void rolledBack(Step body) throws Exception {
        connection.setAutoCommit(false);
        body.run();
        connection.rollback();
        connection.setAutoCommit(true);
        report.count(2, 0);
    }

    private void transaction() throws Exception {
        rolledBack(() -> {
            for (int n = 0; n < 3; n++) {
                check("insert", row("insert into work values (?, ?, ?) returning n", name, n, token()), "" + n);
            }
            check("count", row("select count(*) from work where client = ?", name), "3");
        });
    }

    private void copies() throws Exception {
        StringBuilder lines = new StringBuilder();
        for (int n = 0; n < 60; n++) lines.append(name + "\t" + n + "\t" + token() + "\n");
        CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
        rolledBack(() -> {
            check("copy in", copies.copyIn("copy work from stdin", new StringReader(lines.toString())), 60L);
            StringWriter back = new StringWriter();
            copies.copyOut("copy (select * from work where client = '" + name + "' order by n) to stdout", back);
            check("copy", back.toString(), lines.toString());
        });
    }

    private void changing() throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement("select * from public.changing where id = ?")) {
            statement.setInt(1, 1);
            try (ResultSet found = statement.executeQuery()) {
                check("changed table", found.next() ? found.getString("name") : null, "one");
            }
        }
    }

    private void big() throws Exception {
        String mine = token();
        String text = row("select repeat(?::text, 10000)", mine);
        check("big row", mine.repeat(10000).equals(text), true);
        byte[] sum = MessageDigest.getInstance("MD5").digest(text.getBytes(StandardCharsets.UTF_8));
        check("big parameter", row("select md5(?::text)", text), HexFormat.of().formatHex(sum));
    }

    private void batch() throws Exception {
        rolledBack(() -> {
            try (PreparedStatement statement = connection.prepareStatement("insert into work values (?, ?, 'batch')")) {
                for (int n = 0; n < 10; n++) {
                    statement.setString(1, name);
                    statement.setInt(2, n);
                    statement.addBatch();
                }
                check("batch", statement.executeBatch().length, 10);
            }
            check("count", row("select count(*), sum(n) from work where client = ?", name), "10|45");
        });
    }

    private void refused() throws SQLException {
        String code = "no error";
        try {
            row("select 1 / ?::int4", 0);
        } catch (SQLException error) {
            code = error.getSQLState();
            if (!"22012".equals(code)) throw error;
        }
        check("error", code, "22012");
        check("after the error", row("select 1"), "1");
    }

    private void many() throws SQLException {
        for (int turn = 0; turn < 3; turn++) {
            int which = random.nextInt(MANY);
            String text = "select " + which + " + ?::int4";
            try (PreparedStatement statement = connection.prepareStatement(text)) {
                statement.unwrap(org.postgresql.PGStatement.class).setPrepareThreshold(1);
                statement.setInt(1, index);
                try (ResultSet found = statement.executeQuery()) {
                    found.next();
                    check("many statements", found.getInt(1), which + index);
                }
            }
        }
    }

    /** A portal that is read in portions. */
    private void cursor() throws Exception {
        rolledBack(() -> {
            try (PreparedStatement statement = connection.prepareStatement("select generate_series(1, ?)")) {
                statement.setFetchSize(50);
                statement.setInt(1, 300);
                long sum = 0;
                try (ResultSet found = statement.executeQuery()) {
                    while (found.next()) sum += found.getInt(1);
                }
                check("cursor", sum, 45150L);
            }
        });
    }

    /** A request to cancel may come too late; the statement then ends by itself. */
    private void cancelled() throws SQLException {
        if (round % 3 != 0) return;
        Timer timer = new Timer(true);
        try (Statement statement = connection.createStatement()) {
            timer.schedule(
                    new TimerTask() {
                        @Override
                        public void run() {
                            try {
                                statement.cancel();
                            } catch (SQLException error) {
                                synchronized (failed) {
                                    failed.add(List.of(now(), "cancel: " + error));
                                }
                            }
                        }
                    },
                    100);
            statement.execute("select pg_sleep(1.5)");
        } catch (SQLException error) {
            if (!"57014".equals(error.getSQLState())) throw error;
        } finally {
            timer.cancel();
        }
        check("after the cancel", row("select ?::int4", 1), "1");
        report.count(1, 0);
    }
}
