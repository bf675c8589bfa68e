// Command customers-go is a function that asks a PostgreSQL database, as any program would: database/sql, the driver lib/pq, and
// the address in DATABASE_URL. It knows nothing of networks of functions.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"

	"github.com/aws/aws-lambda-go/lambda"
	_ "github.com/lib/pq"
)

type question struct {
	ID int64 `json:"id"`
}

type customer struct {
	ID     int64  `json:"id"`
	Name   string `json:"name"`
	City   string `json:"city"`
	Server string `json:"server"` // what answered
	SeenAs string `json:"seenAs"` // whence the server sees the function come
}

const find = `SELECT id, name, city, current_setting('server_version'), host(inet_client_addr()) FROM customers WHERE id = $1`

func handler(db *sql.DB) func(context.Context, question) (*customer, error) {
	return func(ctx context.Context, q question) (*customer, error) {
		c := &customer{}
		err := db.QueryRowContext(ctx, find, q.ID).Scan(&c.ID, &c.Name, &c.City, &c.Server, &c.SeenAs)
		if errors.Is(err, sql.ErrNoRows) {
			return nil, fmt.Errorf("no customer %d", q.ID)
		}
		if err != nil {
			return nil, fmt.Errorf("ask the database: %w", err)
		}
		return c, nil
	}
}

func main() {
	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL")) // connects with the first question
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lambda.Start(handler(db))
}
