import java.io.BufferedInputStream;
import java.io.ByteArrayInputStream;
import java.io.DataInputStream;
import java.util.Properties;
import java.util.TreeSet;

/** Reads files of properties, each a length and its bytes; prints a line for each: "refused", or its entries in hex. */
public class Read {
    static String hex(String text) {
        StringBuilder made = new StringBuilder();
        for (char unit : text.toCharArray()) {
            made.append(String.format("%04x", (int) unit));
        }
        return made.toString();
    }

    public static void main(String[] arguments) throws Exception {
        DataInputStream input = new DataInputStream(new BufferedInputStream(System.in));
        int files = input.readInt();
        for (int file = 0; file < files; file++) {
            byte[] content = new byte[input.readInt()];
            input.readFully(content);
            Properties properties = new Properties();
            try {
                properties.load(new ByteArrayInputStream(content));
            } catch (IllegalArgumentException refused) {
                System.out.println("refused");
                continue;
            }
            StringBuilder line = new StringBuilder("read");
            for (String key : new TreeSet<>(properties.stringPropertyNames())) {
                line.append(' ').append(hex(key)).append('=').append(hex(properties.getProperty(key)));
            }
            System.out.println(line);
        }
    }
}
