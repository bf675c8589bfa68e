// Command orders-go is a function on the unmodified aws-lambda-go library: it checks orders and sums them up.
// The binary is called bootstrap and runs on runtime "provided", here as on AWS.
package main

import (
	"context"
	"fmt"
	"log"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

type item struct {
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
	Cents    int64  `json:"priceCents"`
}

type order struct {
	ID    string `json:"id"`
	Items []item `json:"items"`
}

type summary struct {
	Order     string `json:"order"`
	Lines     int    `json:"lines"`
	Pieces    int    `json:"pieces"`
	Cents     int64  `json:"totalCents"`
	Total     string `json:"total"`
	RequestID string `json:"requestId"`
}

const (
	quantityMax = 1_000
	centsMax    = 10_000_000
)

func handle(ctx context.Context, o order) (*summary, error) {
	if o.ID == "" || len(o.Items) == 0 {
		return nil, fmt.Errorf("order %q: give an id and at least one item", o.ID)
	}
	s := &summary{Order: o.ID, Lines: len(o.Items)}
	for _, i := range o.Items {
		if i.Quantity < 1 || i.Quantity > quantityMax || i.Cents < 0 || i.Cents > centsMax {
			return nil, fmt.Errorf("order %s: item %q: quantity is 1-%d, price 0-%d cents", o.ID, i.SKU, quantityMax, centsMax)
		}
		s.Pieces += i.Quantity
		s.Cents += int64(i.Quantity) * i.Cents
	}
	s.Total = fmt.Sprintf("%d.%02d", s.Cents/100, s.Cents%100)
	if c, ok := lambdacontext.FromContext(ctx); ok {
		s.RequestID = c.AwsRequestID
	}
	log.Printf("order %s: %d pieces, %s", s.Order, s.Pieces, s.Total)
	return s, nil
}

func main() { lambda.Start(handle) }
