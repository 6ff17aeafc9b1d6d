// The scenarios. Each reports counts and what was seen, which a run straight to PostgreSQL must repeat.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
)

var background = context.Background()

var modes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement,
	pgx.QueryExecModeSimpleProtocol,
	pgx.QueryExecModeCacheDescribe,
	pgx.QueryExecModeExec,
}

func cancelOnServer(connection *pgconn.PgConn) ctxwatch.Handler {
	return &pgconn.CancelRequestContextWatcherHandler{
		Conn: connection, CancelRequestDelay: 0, DeadlineDelay: 10 * time.Second,
	}
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

func isolation(given job) (*report, error) {
	return everywhere(given.URLs, func(connection *pgx.Conn, index int, made *report) (any, error) {
		wrong := 0
		for round := range given.Rounds {
			var name string
			mode := modes[round%len(modes)]
			if err := connection.QueryRow(background, "select name from who", mode).Scan(&name); err != nil {
				return nil, err
			}
			if name != given.Expect[index] {
				wrong++
			}
		}
		made.count(given.Rounds, wrong)
		return wrong, nil
	}), nil
}

// copies writes by CopyFrom, which sends its data before the server has agreed to take it.
func copies(given job) (*report, error) {
	columns := []string{"client", "n", "body"}
	return everywhere(given.URLs, func(connection *pgx.Conn, client int, made *report) (any, error) {
		var rows [][]any
		var expected strings.Builder
		for n := range given.Rounds {
			body := fmt.Sprintf("body %d %d", client, n)
			rows = append(rows, []any{client, n, body})
			fmt.Fprintf(&expected, "%d\t%d\t%s\n", client, n, body)
		}
		target := pgx.Identifier{given.Table}
		written, err := connection.CopyFrom(background, target, columns, pgx.CopyFromRows(rows))
		if err != nil {
			return nil, err
		}
		refused := [][]any{{client, -1, "refused"}}
		_, err = connection.CopyFrom(background, target, columns, pgx.CopyFromRows(refused))
		if code(err) == "" {
			return nil, fmt.Errorf("a refused row: %w", err)
		}
		seen := []any{written, code(err)}
		var back bytes.Buffer
		text := fmt.Sprintf("copy (select * from %s where client = %d order by n) to stdout", given.Table, client)
		if _, err := connection.PgConn().CopyTo(background, &back, text); err != nil {
			return nil, err
		}
		wrong := 0
		if back.String() != expected.String() {
			wrong++
		}
		made.count(3, wrong)
		return append(seen, digest(back.String())), nil
	}), nil
}

// steps collects the rows of statements, or the server's code where it refuses; err is what is no answer of it.
type steps struct {
	connection *pgx.Conn
	seen       []any
	err        error
}

func (s *steps) add(found any, err error) {
	switch {
	case s.err != nil:
	case err == nil:
		s.seen = append(s.seen, found)
	case code(err) != "":
		s.seen = append(s.seen, code(err))
	default:
		s.err = err
	}
}

func (s *steps) query(text string, arguments ...any) {
	if s.err != nil {
		return
	}
	rows, err := s.connection.Query(background, text, arguments...)
	s.collect(rows, err)
}

func (s *steps) collect(rows pgx.Rows, err error) {
	if err != nil {
		s.add(nil, err)
		return
	}
	var found [][]any
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			s.err = err
			rows.Close()
			return
		}
		found = append(found, values)
	}
	s.add(fmt.Sprint(found), rows.Err())
}

func mixed(given job) (*report, error) {
	return everywhere(given.URLs, func(connection *pgx.Conn, client int, made *report) (any, error) {
		s := &steps{connection: connection}
		insert := fmt.Sprintf("insert into %s values ($1, $2, 'row') returning n", given.Table)
		count := fmt.Sprintf("select count(*) from %s where client = $1", given.Table)
		typed(s, client)

		// More statements than a server connection keeps, then the first ones again.
		for n := range given.Rounds {
			s.query(fmt.Sprintf("select %d + $1::int", n%(given.Rounds*4/5)), client)
		}
		if _, err := connection.Prepare(background, "named", "select $1::int * 2"); err != nil {
			return nil, err
		}
		s.query("named", client)
		if err := connection.Deallocate(background, "named"); err != nil {
			return nil, err
		}

		s.query("begin")
		for _, n := range []int{1, 1} {
			s.query(insert, client, n)
		}
		s.query(count, client)
		s.query("commit")
		s.query(count, client)

		s.query("begin")
		for n := range 5 {
			s.query(insert, client, n)
		}
		s.query("rollback")
		s.query(count, client)

		batches(s, insert, count, client)
		big(s)
		canceled(s)
		s.query(count, client)
		made.count(len(s.seen), 0)
		return s.seen, s.err
	}), nil
}

func typed(s *steps, client int) {
	text := "select $1::int8, $2::text, $3::bytea, $4::timestamptz, $5::jsonb, $6::int4[], $7::text, $8::numeric"
	at := time.Unix(86400, 0).UTC()
	values := []any{
		int64(1) << 40, fmt.Sprint("naïve ", client), []byte{0, 255, byte(client)}, at,
		map[string]int{"client": client}, []int32{1, int32(client)}, nil, "12345.678901234567890",
	}
	for _, mode := range modes {
		if mode != pgx.QueryExecModeExec && mode != pgx.QueryExecModeSimpleProtocol {
			for range 2 {
				s.query(text, append([]any{mode}, values...)...)
			}
		}
	}
	s.query("select $1::int8, $2::text", pgx.QueryExecModeExec, 7, "seven")
	s.query("select $1::int8, $2::text", pgx.QueryExecModeSimpleProtocol, 7, "seven")
}

// batches sends several statements at once, in pgx's implicit transaction: one of them fails, then none.
func batches(s *steps, insert, count string, client int) {
	for _, divisor := range []int{0, 1} {
		batch := &pgx.Batch{}
		batch.Queue(insert, client, 10)
		batch.Queue("select 1 / $1::int", divisor)
		batch.Queue(insert, client, 11)
		results := s.connection.SendBatch(background, batch)
		for range 3 {
			s.collect(results.Query())
		}
		if err := results.Close(); err != nil && code(err) == "" {
			s.err = errors.Join(s.err, err)
		}
		s.query(count, client)
	}
	pipeline(s)
}

// pipeline has two synchronisation points, and an error before the first one.
func pipeline(s *steps) {
	made := s.connection.PgConn().StartPipeline(background)
	made.SendQueryParams("select 1 / $1::int", [][]byte{[]byte("0")}, nil, nil, nil)
	made.SendQueryParams("select 'skipped'", nil, nil, nil, nil)
	if err := made.Sync(); err != nil {
		s.add(nil, err)
	}
	made.SendQueryParams("select $1::text", [][]byte{[]byte("after")}, nil, nil, nil)
	if err := made.Sync(); err != nil {
		s.add(nil, err)
	}
	for {
		results, err := made.GetResults()
		if err != nil {
			s.add(nil, err)
			if code(err) == "" {
				break
			}
			continue
		}
		if results == nil {
			break
		}
		switch found := results.(type) {
		case *pgconn.ResultReader:
			read := found.Read()
			s.add(fmt.Sprintf("%q", read.Rows), read.Err)
		default:
			s.add(fmt.Sprintf("%T", found), nil)
		}
	}
	if err := made.Close(); err != nil {
		s.add(nil, err)
	}
}

func big(s *steps) {
	var text, sum string
	err := s.connection.QueryRow(background, "select repeat($1, 3000000)", "ab").Scan(&text)
	s.add(digest(text), err)
	err = s.connection.QueryRow(background, "select md5($1::text)", text).Scan(&sum)
	s.add(sum, err)
	rows, err := s.connection.Query(background, "select n, md5(n::text) from generate_series(1, $1::int) n", 20000)
	if err != nil {
		s.add(nil, err)
		return
	}
	var all strings.Builder
	for rows.Next() {
		var n int
		if err := rows.Scan(&n, &sum); err != nil {
			s.err = err
			return
		}
		fmt.Fprintln(&all, n, sum)
	}
	s.add(digest(all.String()), rows.Err())
}

func canceled(s *steps) {
	limited, stop := context.WithTimeout(background, 200*time.Millisecond)
	defer stop()
	_, err := s.connection.Exec(limited, "select pg_sleep(20)")
	if err == nil {
		err = errors.New("a cancelled statement finished")
	}
	s.add(nil, err)
}

func timeouts(given job) (*report, error) {
	urls := append(append([]string{}, given.URLs...), given.Plain...)
	for _, url := range given.Plain {
		urls = append(urls, url+"&statement_timeout=500")
	}
	return everywhere(urls, func(connection *pgx.Conn, _ int, made *report) (any, error) {
		made.count(1, 0)
		_, err := connection.Exec(background, fmt.Sprintf("select pg_sleep(%f)", given.Seconds))
		if err == nil {
			return "finished", nil
		}
		if code(err) == "" {
			return nil, err
		}
		return code(err), nil
	}), nil
}

func ddl(given job) (*report, error) {
	owner, err := open(given.Owner)
	if err != nil {
		return nil, err
	}
	defer owner.Close(background)
	var ready, changed sync.WaitGroup
	ready.Add(len(given.URLs))
	changed.Go(func() {
		ready.Wait()
		_, err = owner.Exec(background, fmt.Sprintf("alter table %s add column extra text default 'new'", given.Table))
	})
	text := fmt.Sprintf("select * from %s where id = $1", given.Table)
	made := everywhere(given.URLs, func(connection *pgx.Conn, _ int, made *report) (any, error) {
		stale := 0
		run := func() error {
			for range given.Rounds {
				found, err := pgx.CollectOneRow(query(connection, text), pgx.RowToMap)
				if err != nil && !strings.Contains(err.Error(), "cached plan must not change result type") {
					return err
				}
				if err != nil {
					stale++
				} else if found["name"] != "one" {
					made.count(0, 1)
				}
			}
			made.count(given.Rounds, 0)
			return nil
		}
		err := run()
		ready.Done()
		changed.Wait()
		if err == nil {
			err = run()
		}
		return stale, err
	})
	return made, err
}

func query(connection *pgx.Conn, text string) pgx.Rows {
	rows, _ := connection.Query(background, text, 1) // CollectOneRow returns the error
	return rows
}
