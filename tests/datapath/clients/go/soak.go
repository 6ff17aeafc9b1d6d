package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	mostRecords    = 500
	manyStatements = 300
)

// stale is what a changed table may lead to: a stale plan, and another number of columns. The connection goes on.
var stale = map[string]bool{"0A000": true, "08P01": true}

// record is a moment in epoch seconds and what happened then.
type record [2]any

// soaker is one connection's work until the time is over; failed and wrong are for who asks to judge.
type soaker struct {
	Failed []record `json:"failed"`
	Wrong  []record `json:"wrong"`

	job        job
	index      int
	name       string
	report     *report
	connection *pgx.Conn
	opened     time.Time
}

func soak(given job) (*report, error) {
	made := &report{Errors: map[string]int{}, Detail: make([]any, len(given.URLs))}
	var group sync.WaitGroup
	for index := range given.URLs {
		client := &soaker{
			Failed: []record{}, Wrong: []record{},
			job: given, index: index, name: fmt.Sprintf("%s-%d", given.Client, index), report: made,
		}
		made.Detail[index] = client
		group.Go(client.run)
	}
	group.Wait()
	return made, nil
}

func seconds(amount float64) time.Duration { return time.Duration(amount * float64(time.Second)) }

func (s *soaker) run() {
	work := []func(int) error{
		s.own, s.typed, s.transaction, s.copies, s.changing, s.big, s.batch, s.refused, s.many, s.own, s.cancelled,
	}
	end := time.Now().Add(seconds(s.job.Seconds))
	for round := s.index; time.Now().Before(end); round++ {
		if err := s.step(work[round%len(work)], round); err != nil {
			s.fails(err)
			if !stale[code(err)] {
				s.close()
			}
		}
		if lifetime := s.job.Lifetimes[s.index]; lifetime > 0 && time.Since(s.opened) > seconds(lifetime) {
			s.close()
		}
		time.Sleep(seconds(s.job.Pause * (0.5 + rand.Float64())))
	}
	s.close()
}

func (s *soaker) step(work func(int) error, round int) (err error) {
	if s.connection == nil {
		if s.connection, err = open(s.job.URLs[s.index]); err != nil {
			s.connection = nil
			return err
		}
		s.opened = time.Now()
	}
	return work(round)
}

func (s *soaker) close() {
	if s.connection != nil {
		_ = s.connection.Close(background)
		s.connection = nil
	}
}

func (s *soaker) fails(err error) {
	if len(s.Failed) < mostRecords {
		s.Failed = append(s.Failed, record{float64(time.Now().UnixMilli()) / 1000, err.Error()})
	}
}

func (s *soaker) check(what string, found, expected any) {
	shown, wanted := fmt.Sprint(found), fmt.Sprint(expected)
	if shown == wanted {
		s.report.count(1, 0)
		return
	}
	s.report.count(1, 1)
	if len(s.Wrong) < mostRecords {
		text := fmt.Sprintf("%s: %.150s, not %.150s", what, shown, wanted)
		s.Wrong = append(s.Wrong, record{float64(time.Now().UnixMilli()) / 1000, text})
	}
}

func token() string { return fmt.Sprintf("%016x", rand.Uint64()) }

func (s *soaker) own(int) error {
	for _, mode := range modes {
		var name, found string
		mine := token()
		row := s.connection.QueryRow(background, "select name, $1::text from who", mode, mine)
		if err := row.Scan(&name, &found); err != nil {
			return err
		}
		s.check("own schema", []string{name, found}, []string{s.job.Expect[s.index], mine})
	}
	return nil
}

func (s *soaker) typed(int) error {
	number, mine := rand.Int64(), token()
	var a int64
	var b string
	var c []byte
	var e []int64
	var f *string
	row := s.connection.QueryRow(background, "select $1::int8, $2::text, $3::bytea, $4::int8[], $5::text",
		number, "naïve "+mine, []byte(mine), []int64{1, number}, nil)
	if err := row.Scan(&a, &b, &c, &e, &f); err != nil {
		return err
	}
	s.check("typed", []any{a, b, string(c), e, f == nil}, []any{number, "naïve " + mine, mine, []int64{1, number}, true})
	return nil
}

func (s *soaker) transaction(int) error {
	tx, err := s.connection.Begin(background)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(background) }()
	for n := range 3 {
		var found int
		text := "insert into work values ($1, $2, $3) returning n"
		if err := tx.QueryRow(background, text, s.name, n, token()).Scan(&found); err != nil {
			return err
		}
		s.check("insert", found, n)
	}
	var count int
	if err := tx.QueryRow(background, "select count(*) from work where client = $1", s.name).Scan(&count); err != nil {
		return err
	}
	s.check("count", count, 3)
	return tx.Rollback(background)
}

// copies writes by CopyFrom, which sends its data before the server has agreed to take it.
func (s *soaker) copies(int) error {
	tx, err := s.connection.Begin(background)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(background) }()
	var rows [][]any
	var expected strings.Builder
	for n := range 60 {
		body := token()
		rows = append(rows, []any{s.name, n, body})
		fmt.Fprintf(&expected, "%s\t%d\t%s\n", s.name, n, body)
	}
	columns := []string{"client", "n", "body"}
	if _, err := tx.CopyFrom(background, pgx.Identifier{"work"}, columns, pgx.CopyFromRows(rows)); err != nil {
		return err
	}
	var back bytes.Buffer
	text := fmt.Sprintf("copy (select * from work where client = '%s' order by n) to stdout", s.name)
	if _, err := s.connection.PgConn().CopyTo(background, &back, text); err != nil {
		return err
	}
	s.check("copy", back.String(), expected.String())
	s.report.count(3, 0)
	return tx.Rollback(background)
}

func (s *soaker) changing(int) error {
	text := "select * from public.changing where id = $1"
	found, err := pgx.CollectOneRow(query(s.connection, text), pgx.RowToMap)
	if err != nil {
		return err
	}
	s.check("changed table", found["name"], "one")
	return nil
}

func (s *soaker) big(int) error {
	mine := token()
	var text, sum string
	if err := s.connection.QueryRow(background, "select repeat($1::text, 10000)", mine).Scan(&text); err != nil {
		return err
	}
	s.check("big row", text == strings.Repeat(mine, 10000), true)
	if err := s.connection.QueryRow(background, "select md5($1::text)", text).Scan(&sum); err != nil {
		return err
	}
	right := md5.Sum([]byte(text))
	s.check("big parameter", sum, hex.EncodeToString(right[:]))
	return nil
}

// batch is pgx's pipeline, in its implicit transaction.
func (s *soaker) batch(int) error {
	made := &pgx.Batch{}
	numbers := make([]int64, 6)
	for index := range numbers {
		numbers[index] = rand.Int64()
		made.Queue("select $1::int8", numbers[index])
	}
	results := s.connection.SendBatch(background, made)
	for _, number := range numbers {
		var found int64
		if err := results.QueryRow().Scan(&found); err != nil {
			_ = results.Close()
			return err
		}
		s.check("pipeline", found, number)
	}
	return results.Close()
}

func (s *soaker) refused(int) error {
	var found int
	err := s.connection.QueryRow(background, "select 1 / $1::int4", 0).Scan(&found)
	if code(err) != "22012" && err != nil {
		return err
	}
	s.check("error", code(err), "22012")
	if err := s.connection.QueryRow(background, "select 1").Scan(&found); err != nil {
		return err
	}
	s.check("after the error", found, 1)
	return nil
}

func (s *soaker) many(int) error {
	for range 3 {
		var sum int
		which := rand.IntN(manyStatements)
		text := fmt.Sprintf("select %d + $1::int4", which)
		if err := s.connection.QueryRow(background, text, s.index).Scan(&sum); err != nil {
			return err
		}
		s.check("many statements", sum, which+s.index)
	}
	return nil
}

// cancelled: a request to cancel may come too late; the statement then ends by itself.
func (s *soaker) cancelled(round int) error {
	if round%3 != 0 {
		return nil
	}
	limited, stop := context.WithTimeout(background, 100*time.Millisecond)
	defer stop()
	_, err := s.connection.Exec(limited, "select pg_sleep(1.5)")
	if err != nil && code(err) != "57014" && limited.Err() == nil {
		return err
	}
	var one int
	if err := s.connection.QueryRow(background, "select $1::int4", 1).Scan(&one); err != nil {
		return err
	}
	s.check("after the cancel", one, 1)
	s.report.count(1, 0)
	return nil
}
