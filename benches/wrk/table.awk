# Medians over the rounds of data.tsv, one row for each proxy. The ratio is the median of the ratios within each round, so
# that what a noisy round does to both sides cancels out. Behind it, in parentheses, are the quartiles of these ratios: half of
# the rounds were between them.

function sort(values, count,    i, j, swap) {
  for (i = 2; i <= count; i++)
    for (j = i; j > 1 && values[j - 1] > values[j]; j--) { swap = values[j]; values[j] = values[j - 1]; values[j - 1] = swap }
}

# Of sorted values; what is between two of them in proportion.
function quantile(values, count, share,    at, below) {
  at = 1 + (count - 1) * share
  below = int(at)
  return below < count ? values[below] + (values[below + 1] - values[below]) * (at - below) : values[count]
}

function column(proxy, field,    round, values, count) {
  for (round = 1; round <= rounds; round++)
    if ((round, proxy, field) in cell) values[++count] = cell[round, proxy, field]
  sort(values, count)
  return quantile(values, count, 0.5)
}

function ratio(proxy,    round, values, count) {
  for (round = 1; round <= rounds; round++)
    if ((round, proxy, "cpu") in cell && (round, reference, "cpu") in cell && cell[round, reference, "cpu"] > 0)
      values[++count] = cell[round, proxy, "cpu"] / cell[round, reference, "cpu"]
  if (!count) return "-"
  if (proxy == reference) return "1.00"
  sort(values, count)
  return sprintf("%.2f (%.2f-%.2f)", quantile(values, count, 0.5), quantile(values, count, 0.25), quantile(values, count, 0.75))
}

NR > 1 {
  if (!($2 in seen)) { seen[$2]; names[++proxies] = $2 }
  if ($1 > rounds) rounds = $1
  cell[$1, $2, "user"] = $5 / $3
  cell[$1, $2, "system"] = $6 / $3
  cell[$1, $2, "cpu"] = ($5 + $6) / $3
  cell[$1, $2, "rps"] = $4
  cell[$1, $2, "p50"] = $7
  cell[$1, $2, "p99"] = $8
  errors[$2] += $9
  if ($10 > peak[$2]) peak[$2] = $10
}

END {
  for (i = 1; i <= proxies; i++) {
    p = names[i]
    printf "| %s | %.1f | %s | %.1f + %.1f | %.0f | %.2f ms | %.2f ms | %.1f MiB | %d |\n", p, column(p, "cpu"), ratio(p), \
      column(p, "user"), column(p, "system"), column(p, "rps"), column(p, "p50") / 1000, column(p, "p99") / 1000, \
      peak[p] / 1024, errors[p]
  }
}
