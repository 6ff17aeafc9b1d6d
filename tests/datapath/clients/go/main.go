// Runs one scenario with pgx: a job in JSON on stdin, a report in JSON on stdout.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

type job struct {
	Scenario  string
	URLs      []string
	Plain     []string
	Expect    []string
	Rounds    int
	Seconds   float64
	Table     string
	Owner     string
	Client    string
	Lifetimes []float64
	Pause     float64
}

type report struct {
	mutex      sync.Mutex
	Statements int            `json:"statements"`
	Wrong      int            `json:"wrong"`
	Errors     map[string]int `json:"errors"`
	Detail     []any          `json:"detail"`
}

func (r *report) count(statements, wrong int) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.Statements += statements
	r.Wrong += wrong
}

func (r *report) failed(err error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.Errors[err.Error()]++
}

// everywhere runs the work for every URL at once, each on a connection of its own; its failures are counted.
func everywhere(urls []string, work func(*pgx.Conn, int, *report) (any, error)) *report {
	made := &report{Errors: map[string]int{}, Detail: make([]any, len(urls))}
	var group sync.WaitGroup
	for index, url := range urls {
		group.Go(func() {
			connection, err := open(url)
			if err == nil {
				defer connection.Close(context.Background())
				made.Detail[index], err = work(connection, index, made)
			}
			if err != nil {
				made.failed(err)
			}
		})
	}
	group.Wait()
	return made
}

// open connects; a context that ends cancels the statement on the server and leaves the connection usable.
func open(url string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.BuildContextWatcherHandler = cancelOnServer
	return pgx.ConnectConfig(context.Background(), config)
}

// code is the SQLSTATE of what the server refused, or empty.
func code(err error) string {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return refused.Code
	}
	return ""
}

func main() {
	var given job
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		fail(err)
	}
	scenarios := map[string]func(job) (*report, error){
		"isolation": isolation, "copy": copies, "mixed": mixed, "timeouts": timeouts, "ddl": ddl, "soak": soak,
	}
	made, err := scenarios[given.Scenario](given)
	if err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(made); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
