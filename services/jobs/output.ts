/** The last `limit` units at the most. A character of two, of which the cut would leave one, goes whole: PostgreSQL stores no half. */
export function tailOf(text: string, limit: number): string {
  if (text.length <= limit) return text;
  const tail = text.slice(text.length - limit);
  return /^[\uDC00-\uDFFF]/.test(tail) ? tail.slice(1) : tail;
}
